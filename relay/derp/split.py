"""What a client sent, cut into runs of packets for one destination.

The inner loop of the pure relay. Its unit is not the frame but the *run*:
neighbouring SendPacket frames for the same destination, which travel on as one
chunk of bytes. A busy WireGuard flow sends many packets of one size to one
peer, so nearly every frame takes the short way through :func:`split_frames`:
one comparison, one slice.
"""

from __future__ import annotations

from typing import Final, Protocol

from tailnet.derp.frames import (
    DISCO_MAGIC,
    FRAME_HEADER,
    MAX_PACKET_SIZE,
    MAX_PING_LEN,
    MIN_DISCO_LEN,
    PING_LEN,
    FrameType,
)
from tailnet.errors import RemoteProtocolError
from tailnet.keys import KEY_LEN

__all__ = ("PREFIX_LEN", "Sink", "skip_packets", "split_frames")

_HEADER_LEN: Final = FRAME_HEADER.size
# Header and key: what stands before a packet, in SendPacket and RecvPacket.
PREFIX_LEN: Final = _HEADER_LEN + KEY_LEN

_SEND_PACKET: Final = int(FrameType.SEND_PACKET)
_RECV_TYPE: Final = bytes([FrameType.RECV_PACKET])
_DISCO_FIRST: Final = DISCO_MAGIC[0]
_MAX_SEND_LEN: Final = KEY_LEN + MAX_PACKET_SIZE
_MIN_DISCO_SEND_LEN: Final = KEY_LEN + MIN_DISCO_LEN

# The sizes that derper accepts; it closes the connection for others
# (derpserver.go handleFrame*). Types that are not here are skipped.
_BODY_SIZES: Final = {
    int(FrameType.SEND_PACKET): range(KEY_LEN, KEY_LEN + MAX_PACKET_SIZE + 1),
    int(FrameType.NOTE_PREFERRED): range(1, 2),
    int(FrameType.FORWARD_PACKET): range(
        2 * KEY_LEN, 2 * KEY_LEN + MAX_PACKET_SIZE + 1
    ),
    int(FrameType.WATCH_CONNS): range(1),
    int(FrameType.CLOSE_PEER): range(KEY_LEN, KEY_LEN + 1),
    int(FrameType.PING): range(PING_LEN, MAX_PING_LEN + 1),
}


class Sink(Protocol):
    """Where :func:`split_frames` puts what it finds, in order."""

    def packets(self, dst: bytes, frames: bytes, count: int, *, disco: bool) -> None:
        """A run: packets for one destination, ready to be written to it.

        Args:
            dst: Destination key.
            frames: RecvPacket frames, encoded.
            count: How many.
            disco: Whether they are disco packets; a run never mixes both.
        """
        ...

    def frame(self, frame_type: int, body: bytes) -> None:
        """A frame that is not a packet, of a size that is legal for its type.

        Args:
            frame_type: A FrameType, or a value newer than this code.
            body: Its body; empty for a type that relays skip.

        Raises:
            RemoteProtocolError: The client may not send it.
        """
        ...


def split_frames(data: bytes, source: bytes, sink: Sink) -> tuple[int, int]:
    """Cut the bytes of a client into runs and other frames.

    Args:
        data: Bytes of the client, from the start of a frame.
        source: The client's key, which goes into the RecvPacket frames.
        sink: Receives what is found, in order.

    Returns:
        How many bytes are used, and how many behind those must be there
        before the next call can find anything. Used is more than
        ``len(data)`` for an unknown frame that goes on: the rest of it is to
        be skipped.

    Raises:
        RemoteProtocolError: A frame for which derper closes the connection.
            Everything before it has gone to the sink.
    """
    end = len(data)
    pos = 0
    wanted = _HEADER_LEN
    # The current run: its destination and kind, its encoded frames.
    dst = b""
    disco = False
    run: list[bytes] = []
    count = 0
    startswith = data.startswith
    unpack_header = FRAME_HEADER.unpack_from
    while end - pos >= _HEADER_LEN:
        frame_type, length = unpack_header(data, pos)
        after = pos + _HEADER_LEN + length
        if frame_type != _SEND_PACKET or not KEY_LEN <= length <= _MAX_SEND_LEN:
            if count:
                sink.packets(dst, b"".join(run), count, disco=disco)
                run = []
                count = 0
            sizes = _BODY_SIZES.get(frame_type)
            if sizes is None:
                # Any length is legal, up to 4 GiB; nothing of it is kept.
                sink.frame(frame_type, b"")
            elif length not in sizes:
                raise RemoteProtocolError(
                    f"a {FrameType(frame_type).name} frame cannot have a "
                    f"{length}-byte body"
                )
            elif after > end:
                wanted = after - pos
                break
            else:
                sink.frame(frame_type, data[pos + _HEADER_LEN : after])
            pos = after
            continue
        if after > end:
            wanted = after - pos
            break
        packet_at = pos + PREFIX_LEN
        is_disco = (
            length >= _MIN_DISCO_SEND_LEN
            and data[packet_at] == _DISCO_FIRST
            and startswith(DISCO_MAGIC, packet_at)
        )
        if not count or is_disco != disco or not startswith(dst, pos + _HEADER_LEN):
            if count:
                sink.packets(dst, b"".join(run), count, disco=disco)
                run = []
                count = 0
            dst = data[pos + _HEADER_LEN : packet_at]
            disco = is_disco
        head = _RECV_TYPE + data[pos + 1 : pos + _HEADER_LEN] + source
        if after >= end or disco or length == KEY_LEN:
            run.append(head)
            run.append(data[packet_at:after])
            count += 1
            pos = after
            continue
        # A busy flow sends packets of one size to one peer: such frames
        # follow each other at equal distances, with the same 37 bytes first.
        prefix = data[pos:packet_at]
        step = after - pos
        packets = [data[packet_at:after]]
        if startswith(prefix, after):
            add = packets.append
            may_be_disco = length >= _MIN_DISCO_SEND_LEN
            for packet_at in range(
                after + PREFIX_LEN, end - length + KEY_LEN + 1, step
            ):
                if not startswith(prefix, packet_at - PREFIX_LEN) or (
                    data[packet_at] == _DISCO_FIRST
                    and may_be_disco
                    and startswith(DISCO_MAGIC, packet_at)
                ):
                    break
                add(data[packet_at : packet_at + length - KEY_LEN])
        run.append(head)
        run.append(head.join(packets))
        count += len(packets)
        pos += len(packets) * step
    if count:
        sink.packets(dst, b"".join(run), count, disco=disco)
    return pos, wanted


def skip_packets(frames: bytes, start: int, packets: int, size: int) -> tuple[int, int]:
    """Find where the oldest packets of a chunk end.

    Args:
        frames: Encoded RecvPacket frames, nothing else.
        start: Where a frame begins.
        packets: How many to skip at least.
        size: How many bytes of frames to skip at least.

    Returns:
        Where the first frame begins that is not skipped, and how many are:
        the fewest that will do, or all.
    """
    end = len(frames)
    pos = start
    count = 0
    while pos < end and (count < packets or pos - start < size):
        _, length = FRAME_HEADER.unpack_from(frames, pos)
        pos += _HEADER_LEN + length
        count += 1
    return pos, count
