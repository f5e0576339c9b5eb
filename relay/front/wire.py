"""A client's connection until the switch takes it over, or a page is served.

Socket and TLS state stay apart, and no task of ours waits on the socket behind
a caller's back: both can be handed to the switch at any moment.
"""

from __future__ import annotations

import socket
from typing import Final

import trio

from relay.front.tls import TlsConnection, TlsError

__all__ = ("Wire",)

_READ_LEN: Final = 16 << 10
LINGER_TIME: Final = 0.5


class Wire:
    """Bytes from and to a client, with or without TLS.

    Deadlines are the caller's: every ``await`` here may be cancelled, and the
    wire is then only fit to be closed.

    Args:
        sock: Connected and non-blocking; closed by :meth:`close`.
        tls: The server's end of TLS, or None for plain TCP.
    """

    __slots__ = ("_broken", "_early", "_flushing", "_sock", "_unsent", "tls")

    def __init__(self, sock: socket.socket, tls: TlsConnection | None) -> None:
        self._sock: socket.socket | None = sock
        self.tls = tls
        self._early = b""  # came with the last bytes of the TLS handshake
        # What the kernel has not taken yet, and why it never will.
        self._unsent = bytearray()
        self._broken: OSError | None = None
        self._flushing: trio.Lock | None = None

    async def start_tls(self) -> None:
        """Do the TLS handshake, if there is TLS.

        Raises:
            TlsError: The client does not speak TLS, or not with us.
            OSError: The connection broke.
        """
        tls = self.tls
        while tls is not None and not tls.ready:
            data = await self._receive_raw()
            if not data:
                raise TlsError("hung up in the handshake")
            try:
                self._early += tls.feed(data)
            except TlsError:
                self._try_send(tls.take())  # the alert
                raise
            if tls.pending:
                self._put(tls.take())
                await self.flush()

    async def receive(self) -> bytes:
        """The next bytes from the client; ``b""`` when it has closed.

        Raises:
            TlsError: A record is bad.
            OSError: The connection broke.
        """
        if self._early:
            data, self._early = self._early, b""
            return data
        tls = self.tls
        while True:
            if tls is not None and tls.closed:
                return b""
            data = await self._receive_raw()
            if tls is None or not data:
                return data
            data = tls.feed(data)
            if tls.pending:
                self._put(tls.take())
                await self.flush()
            if data:
                return data

    async def send(self, data: bytes) -> None:
        """Send all of ``data``.

        Raises:
            OSError: The connection broke.
        """
        self.send_nowait(data)
        await self.flush()

    def send_nowait(self, data: bytes) -> None:
        """Send what fits now, and keep the rest for :meth:`flush`.

        If the connection is broken, ``flush`` and ``receive`` will say so.
        """
        if self.tls is not None:
            self.tls.write(data)
            data = self.tls.take()
        self._put(data)

    @property
    def unsent(self) -> int:
        """Bytes for the network that wait for :meth:`flush`."""
        return len(self._unsent)

    async def flush(self) -> None:
        """Wait until nothing is unsent; several tasks may.

        Raises:
            OSError: The connection broke.
        """
        await trio.lowlevel.checkpoint()
        if self._broken is None and self._unsent:
            if self._flushing is None:
                self._flushing = trio.Lock()
            async with self._flushing:
                while self._unsent and self._broken is None:
                    await trio.lowlevel.wait_writable(self._socket())
                    data, self._unsent = self._unsent, bytearray()
                    self._put(data)
        if self._broken is not None:
            raise self._broken

    def _put(self, data: bytes | bytearray) -> None:
        if self._unsent or self._broken is not None:
            if self._broken is None:
                self._unsent += data
            return
        try:
            sent = self._socket().send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as exc:
            self._broken = exc
            return
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]

    async def linger(self) -> None:
        """Let the client read our last answer while it is still sending.

        Closing with unread bytes would reset the connection, and the answer
        with it (net/http server.go closeWriteAndWait, which waits as long).
        """
        sock = self._socket()
        with trio.move_on_after(LINGER_TIME):
            if self.tls is not None:
                self.tls.close()
                self._put(self.tls.take())
                self.tls = None
            await self.flush()
            sock.shutdown(socket.SHUT_WR)
            while await self._receive_raw():
                pass

    def release(self) -> tuple[socket.socket, TlsConnection | None]:
        """Give the socket and its TLS state away; the wire is then empty.

        Nothing may be unsent.
        """
        assert not self._unsent
        sock, self._sock = self._socket(), None
        return sock, self.tls

    def close(self) -> None:
        """Close the connection; fine to call after :meth:`release`."""
        sock = self._sock
        if sock is None:
            return
        if self.tls is not None and self.tls.ready:
            self.tls.close()
            self._try_send(self.tls.take())
        try:
            # What was sent arrives even if the client has sent more than was
            # read; close alone would turn into a reset that eats our answer.
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # already gone
        sock.close()
        self._sock = None

    def try_send_plain(self, data: bytes) -> None:
        """Send past TLS what fits now: to a client that does not speak it."""
        self._try_send(data)

    def _try_send(self, data: bytes) -> None:
        try:
            if data:
                self._socket().send(data)
        except OSError:
            pass  # it was a courtesy

    def _socket(self) -> socket.socket:
        if self._sock is None:
            raise trio.ClosedResourceError("this connection was given away")
        return self._sock

    async def _receive_raw(self) -> bytes:
        await trio.lowlevel.checkpoint()
        sock = self._socket()
        while True:
            try:
                return sock.recv(_READ_LEN)
            except (BlockingIOError, InterruptedError):
                await trio.lowlevel.wait_readable(sock)
