"""TLS as a sans-IO object: bytes of the network in, bytes of the peer out.

The front drives it while trio waits for the socket; ``Switch.adopt`` then
takes it over with all its state. That a connection can move is why this is
not ``trio.SSLStream``; that is also several times slower, with a task switch
and a system call for each record.
"""

from __future__ import annotations

import ssl
from typing import Final, Protocol

__all__ = ("PureTls", "TlsConnection", "TlsError")

# The plaintext of a record has at most 2**14 bytes (RFC 8446 5.1), and
# SSL_read gives one record a call.
READ_LEN: Final = 1 << 14


class TlsError(Exception):
    """The peer does not speak TLS, or refuses ours. Close the connection.

    ``take()`` may still have an alert for the peer.
    """


class TlsConnection(Protocol):
    """The server's end of one TLS connection, without a socket."""

    ready: bool  # the handshake is done
    closed: bool  # the peer has sent close_notify: no more plaintext

    @property
    def version(self) -> str | None:
        """``TLSv1.3`` or ``TLSv1.2`` once ready."""
        ...

    @property
    def pending(self) -> bool:
        """Whether ``take()`` has something."""
        ...

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take bytes of the network; return the plaintext in them.

        Raises:
            TlsError: The handshake failed or a record is bad.
        """
        ...

    def write(self, data: bytes) -> None:
        """Seal plaintext; ``take()`` has the records."""
        ...

    def take(self) -> bytes:
        """Bytes for the network. To be called after ``feed`` too."""
        ...

    def close(self) -> None:
        """Say close_notify; ``take()`` has it. Nothing is written after it."""
        ...


class PureTls:
    """:class:`TlsConnection` on the standard library's ``ssl.SSLObject``."""

    __slots__ = ("_incoming", "_object", "_outgoing", "closed", "ready")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=True
        )
        self.ready = False
        self.closed = False

    @property
    def version(self) -> str | None:
        return self._object.version()

    @property
    def pending(self) -> bool:
        return self._outgoing.pending > 0

    def feed(self, data: bytes | memoryview) -> bytes:
        incoming = self._incoming
        incoming.write(data)
        chunks: list[bytes] = []
        try:
            if not self.ready:
                self._object.do_handshake()
                self.ready = True
            read = self._object.read
            # A read takes a whole record, so once the bytes are used up there
            # is nothing to be had; asking for it would cost an exception.
            while incoming.pending:
                chunk = read(READ_LEN)
                if not chunk:
                    self.closed = True
                    break
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        except ssl.SSLError as exc:
            raise TlsError(exc.reason or str(exc)) from exc
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def write(self, data: bytes) -> None:
        self._object.write(data)

    def take(self) -> bytes:
        return self._outgoing.read()

    def close(self) -> None:
        try:
            self._object.unwrap()
        except ssl.SSLError:
            # Nearly always SSLWantReadError: the peer's own close_notify is
            # not awaited. Before the handshake is done there is nothing to
            # close either.
            pass
