"""DERP frames out of a stream of bytes, as they come: no I/O."""

from __future__ import annotations

from typing import Final

from tailnet.derp.frames import FRAME_HEADER, MAX_BODY_LEN, RawFrame
from tailnet.errors import RemoteProtocolError

__all__ = ("FrameBuffer", "decode_frame")

# Pieces of an unfinished frame that are kept apart before they are joined.
_MAX_PIECES: Final = 64


def decode_frame(
    buffer: memoryview, *, max_body_len: int = MAX_BODY_LEN
) -> tuple[RawFrame, int] | None:
    """Decode the frame at the front of ``buffer``.

    Args:
        buffer: Received bytes that no frame has used yet.
        max_body_len: Longest body to accept.

    Returns:
        The frame and the number of bytes it took, or None if ``buffer`` holds
        only part of a frame. The body is a view: copy it before reusing the
        memory behind ``buffer``.

    Raises:
        RemoteProtocolError: The body would be longer than ``max_body_len``.
    """
    if len(buffer) < FRAME_HEADER.size:
        return None
    frame_type, body_len = FRAME_HEADER.unpack_from(buffer)
    if body_len > max_body_len:
        # Before waiting for the body: a peer could otherwise have us buffer
        # 4 GiB by merely announcing it.
        raise RemoteProtocolError(
            f"frame type {frame_type:#04x} announces a {body_len}-byte body, "
            f"the limit is {max_body_len}"
        )
    end = FRAME_HEADER.size + body_len
    if len(buffer) < end:
        return None
    return RawFrame(frame_type, buffer[FRAME_HEADER.size : end]), end


class FrameBuffer:
    """Received bytes, and the frames in them.

    Args:
        max_body_len: Longest body to accept.
    """

    __slots__ = ("_data", "_max_body_len", "_parts", "_parts_len", "_start", "_wanted")

    def __init__(self, *, max_body_len: int = MAX_BODY_LEN) -> None:
        self._data = b""
        self._start = 0
        # What came since _data was not enough. Put together only when it is:
        # adding each piece at once would copy a long frame for every byte of
        # a peer that drips.
        self._parts: list[bytes] = []
        self._parts_len = 0
        self._wanted = FRAME_HEADER.size  # bytes that the next step needs
        self._max_body_len = max_body_len

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the network."""
        self._parts.append(data)
        self._parts_len += len(data)
        if len(self._parts) >= _MAX_PIECES:
            self._parts = [b"".join(self._parts)]

    def _join(self) -> None:
        if self._parts:
            self._data = b"".join((self._data[self._start :], *self._parts))
            self._start = 0
            self._parts = []
            self._parts_len = 0

    def next_frame(self, *, max_body_len: int | None = None) -> RawFrame | None:
        """Take the next whole frame, or None until more bytes come.

        Args:
            max_body_len: A tighter limit for this frame alone.

        Raises:
            RemoteProtocolError: The frame is longer than the limit.
        """
        limit = self._max_body_len if max_body_len is None else max_body_len
        if len(self._data) - self._start + self._parts_len >= self._wanted:
            self._join()
        view = memoryview(self._data)[self._start :]
        decoded = decode_frame(view, max_body_len=limit)
        if decoded is None:
            header = self.next_header()
            if header is not None:
                self._wanted = FRAME_HEADER.size + header[1]
            return None
        frame, used = decoded
        self._start += used
        self._wanted = FRAME_HEADER.size
        return frame

    def next_header(self) -> tuple[int, int] | None:
        """Look at the header of the next frame without taking the frame.

        Returns:
            Frame type and body length, or None until more bytes come.
        """
        if len(self._data) - self._start < FRAME_HEADER.size:
            self._join()
            if len(self._data) - self._start < FRAME_HEADER.size:
                return None
        frame_type, body_len = FRAME_HEADER.unpack_from(self._data, self._start)
        return frame_type, body_len

    def discard(self, size: int) -> int:
        """Throw away up to ``size`` bytes, as far as they are there.

        Returns:
            How many bytes were thrown away.
        """
        self._join()
        thrown = min(size, len(self._data) - self._start)
        self._start += thrown
        self._wanted = FRAME_HEADER.size
        return thrown

    def take_rest(self) -> bytes:
        """All bytes that no frame has used; the buffer is empty afterwards."""
        self._join()
        rest, self._data, self._start = self._data[self._start :], b"", 0
        self._wanted = FRAME_HEADER.size
        return rest
