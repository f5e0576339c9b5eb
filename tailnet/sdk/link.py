"""The client's end of an API websocket, as a stream of bytes.

A :class:`tailnet.control.link.Link`. Data is in binary messages whose borders
mean nothing; ends as coder/websocket's ``netconn.go`` sees them: close codes
1000 and 1001 are the end, all others are failures.

Unlike the server's end, of which there may be thousands, this one has a task
of its own that writes; so what is sent is always kept for a moment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from tailnet.derp.exchange import READ_LEN
from tailnet.derp.websocket import CLOSE_NORMAL, WebsocketStream
from tailnet.errors import LocalProtocolError, RemoteProtocolError

__all__ = ("WebsocketLink", "open_link")

_CLOSE_GOING_AWAY: Final = 1001

# Seconds for our Close to be written and the server's to come.
_CLOSE_TIMEOUT: Final = 1.0


@asynccontextmanager
async def open_link(
    stream: trio.abc.Stream, rest: bytes = b""
) -> AsyncIterator[WebsocketLink]:
    """Carry bytes in a websocket whose handshake is done.

    At the end of the block the stream is closed, politely if nobody did that
    before and there is no exception.

    Args:
        stream: The connection.
        rest: What came behind the answer to the handshake.
    """
    link = WebsocketLink(stream, rest)
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link._write)
            try:
                yield link
                await link.aclose()
            except Exception as exc:
                # Kept out of the nursery, which would wrap it in a group.
                failure = exc
            finally:
                nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)
    if failure is not None:
        raise failure


class WebsocketLink:
    """Made by :func:`open_link`. One task receives, any may send."""

    def __init__(self, stream: trio.abc.Stream, rest: bytes) -> None:
        self._stream = stream
        self._websocket = WebsocketStream(server=False)
        self._early = rest
        self._out = bytearray()
        self._in_flight = 0
        self._work = trio.lowlevel.ParkingLot()
        self._flushers = trio.lowlevel.ParkingLot()
        self._receiving = False
        self._writer_gone = False
        self._closed = False
        self._broken: trio.BrokenResourceError | None = None

    # -- sending ------------------------------------------------------------

    def send_nowait(self, data: bytes) -> None:
        """Send soon, in order. Does nothing on a connection that is no more."""
        if self._closed or self._broken is not None:
            return
        try:
            self._out += self._websocket.encode(data)
        except LocalProtocolError:
            return  # a Close has come; receive tells
        self._work.unpark_all()

    @property
    def unsent(self) -> int:
        """Bytes that the kernel does not have yet, with what surrounds them."""
        return len(self._out) + self._in_flight

    async def flush(self) -> None:
        """Wait until the kernel has everything.

        Raises:
            trio.BrokenResourceError: The connection broke.
            trio.ClosedResourceError: It was closed on this side.
        """
        await trio.lowlevel.checkpoint()
        while self.unsent:
            self._check_open()
            await self._flushers.park()
        self._check_open()

    def _check_open(self) -> None:
        if self._broken is not None:
            raise trio.BrokenResourceError(str(self._broken)) from self._broken
        if self._closed:
            raise trio.ClosedResourceError("this websocket is closed")

    async def _write(self) -> None:
        try:
            while True:
                while not self._out:
                    await self._work.park()
                batch = bytes(self._out[:READ_LEN])
                del self._out[:READ_LEN]
                self._in_flight = len(batch)
                await self._stream.send_all(batch)
                self._in_flight = 0
                self._flushers.unpark_all()
        except trio.BrokenResourceError as exc:
            self._broken = exc
            self._out.clear()
            self._in_flight = 0
            self._flushers.unpark_all()
            # Whoever reads may not see it otherwise: a peer that is gone is
            # silent.
            await trio.aclose_forcefully(self._stream)
        finally:
            self._writer_gone = True
            self._flushers.unpark_all()

    # -- receiving ----------------------------------------------------------

    async def receive(self) -> bytes:
        """The next bytes; ``b""`` at the end.

        To cancel this loses nothing.

        Raises:
            RemoteProtocolError: The server broke the rules of the websocket.
            trio.BrokenResourceError: The connection broke, or the server
                closed with something else than a good-bye.
            trio.ClosedResourceError: It was closed on this side.
        """
        self._receiving = True
        try:
            while True:
                if self._closed:
                    raise trio.ClosedResourceError("this websocket is closed")
                if self._websocket.closed:
                    return self._end()
                if self._early:
                    await trio.lowlevel.checkpoint()
                    data, self._early = self._early, b""
                else:
                    data = await self._read()
                if payload := self._decode(data):
                    return payload
        finally:
            self._receiving = False

    async def _read(self) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(READ_LEN))
        except trio.ClosedResourceError:
            self._check_open()  # it was the writer that closed it
            raise
        if not data:
            raise trio.BrokenResourceError("the server cut the connection")
        return data

    def _decode(self, data: bytes) -> bytes:
        try:
            return self._websocket.receive_data(data)
        finally:
            if replies := self._websocket.data_to_send():
                self._out += replies
                self._work.unpark_all()

    def _end(self) -> bytes:
        code, reason = self._websocket.close_code, self._websocket.close_reason
        if code in (CLOSE_NORMAL, _CLOSE_GOING_AWAY):
            return b""
        raise trio.BrokenResourceError(
            f"the server closed the websocket with {code}: {reason}".rstrip(": ")
        )

    # -- closing ------------------------------------------------------------

    async def aclose(self, code: int = CLOSE_NORMAL, reason: str = "") -> None:
        """Say good-bye, wait up to a second for an answer, and close.

        Args:
            code: RFC 6455 7.4.1.
            reason: At most 123 bytes of UTF-8.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            with trio.move_on_after(_CLOSE_TIMEOUT):
                await self._say_good_bye(code, reason)
                await self._stream.aclose()
        finally:
            await trio.aclose_forcefully(self._stream)

    async def _say_good_bye(self, code: int, reason: str) -> None:
        self._websocket.close(code, reason)
        self._out += self._websocket.data_to_send()
        self._work.unpark_all()
        while self.unsent and not self._writer_gone:
            await self._flushers.park()
        # RFC 6455 7.1.1: it is the server who closes the connection first.
        try:
            if self._out and not self._in_flight:
                # The writer was cancelled, and not within a frame.
                out, self._out = bytes(self._out), bytearray()
                await self._stream.send_all(out)
            while not self._receiving and not self._websocket.closed:
                self._decode(await self._read())
        except (
            RemoteProtocolError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
        ):
            pass
