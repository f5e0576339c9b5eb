"""The client's end of TLS, many records at a time.

``trio.SSLStream`` gives one record for each ``receive_some``, and a relay
that is not batching sends a record for each packet. Here one read of the
network gives all records that came with it: over TLS with packets of 1,400
bytes a client then needs a third of the processor time for each.
"""

from __future__ import annotations

import operator
import ssl
from typing import Any, Final

import trio

__all__ = ("TlsStream", "default_tls_context", "tls_failure")

# One read of the network.
_READ_LEN: Final = 64 << 10

# The plaintext of a record has at most 2**14 bytes (RFC 8446 5.1), and
# SSL_read gives one record a call.
_RECORD_LEN: Final = 1 << 14

_ENCODING_DER: Final = 2  # _ssl.ENCODING_DER


def default_tls_context() -> ssl.SSLContext:
    """A client's context with the system's roots."""
    context = ssl.create_default_context()
    # Python 3.13 began to refuse private roots that leave optional extensions
    # out; Go's client takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def tls_failure(exc: trio.BrokenResourceError) -> str:
    """Why a handshake did not work, for people."""
    cause = exc.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    if isinstance(cause, ssl.SSLError):
        return cause.reason or str(cause)
    return str(cause or exc) or "the other side closed the connection"


class TlsStream(trio.abc.Stream):
    """A TLS client on a stream. Call ``do_handshake`` first.

    The end of the network without TLS's own good-bye counts as the end of the
    data: DERP's frames say themselves where they end.

    Args:
        transport: The network. Closed with this stream.
        context: How to verify the server.
        server_hostname: For SNI, unless it is an IP address, and to verify.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        context: ssl.SSLContext,
        *,
        server_hostname: str,
    ) -> None:
        self.transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_hostname
        )
        self._plaintext = b""
        self._ended = False
        self._failure: ssl.SSLError | None = None
        self._sending = False
        self._receiving = False
        self._closed = False

    async def do_handshake(self) -> None:
        """Shake hands, and verify the server as the context says.

        Raises:
            trio.BrokenResourceError: It did not work; the cause says why.
        """
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError as exc:
                await self._send_alert()
                raise trio.BrokenResourceError from exc
            else:
                done = True
            if out := self._outgoing.read():
                await self.transport.send_all(out)
            if done:
                return
            data = await self.transport.receive_some(_READ_LEN)
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    async def _send_alert(self) -> None:
        """Tell the server why; whether it hears does not matter."""
        try:
            await self.transport.send_all(self._outgoing.read())
        except trio.BrokenResourceError:
            pass

    @property
    def version(self) -> str | None:
        """``TLSv1.3`` or ``TLSv1.2``, after the handshake."""
        return self._object.version()

    @property
    def alpn(self) -> str | None:
        """The application protocol that was agreed on, if any."""
        return self._object.selected_alpn_protocol()

    def peer_chain(self) -> list[bytes]:
        """The certificates as the server sent them, DER, leaf first."""
        # Public from Python 3.13 on; before that it is there too, one level
        # down.
        ssl_object: Any = self._object
        if hasattr(ssl_object, "get_unverified_chain"):
            return list(ssl_object.get_unverified_chain())
        chain = ssl_object._sslobj.get_unverified_chain()
        return [certificate.public_bytes(_ENCODING_DER) for certificate in chain or ()]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Seal and write.

        If this is cancelled, part of a record may be on its way: close.

        Raises:
            trio.BrokenResourceError: The connection is gone.
            trio.BusyResourceError: Another task is sending.
            trio.ClosedResourceError: The stream is closed.
        """
        self._check_may_send()
        self._sending = True
        try:
            try:
                if len(data):
                    self._object.write(data)
            except ssl.SSLError as exc:
                raise trio.BrokenResourceError from exc
            # With it goes what reading had to say, such as the answer to a
            # key update; RFC 8446 4.6.3 lets that wait for the next record.
            await self.transport.send_all(self._outgoing.read())
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for the network to take more."""
        self._check_may_send()
        await self.transport.wait_send_all_might_not_block()

    def _check_may_send(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this TLS stream is closed")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Read, and open all records that are there.

        Args:
            max_bytes: How much to return at most; None for all there is.

        Returns:
            ``b""`` at the end.

        Raises:
            trio.BrokenResourceError: The connection is gone, or a record bad.
            trio.BusyResourceError: Another task is receiving.
            trio.ClosedResourceError: The stream is closed.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._check_open()
        self._receiving = True
        try:
            # The handshake may have read records behind its own already.
            self._open_records()
            if self._plaintext or self._ended:
                await trio.lowlevel.checkpoint()
            while not (self._plaintext or self._ended):
                if self._failure is not None:
                    raise trio.BrokenResourceError from self._failure
                data = await self.transport.receive_some(_READ_LEN)
                if data:
                    self._incoming.write(data)
                    self._open_records()
                else:
                    self._ended = True
        finally:
            self._receiving = False
        data, self._plaintext = self._plaintext, b""
        if max_bytes is not None and len(data) > max_bytes:
            data, self._plaintext = data[:max_bytes], data[max_bytes:]
        return data

    def _open_records(self) -> None:
        """Move all plaintext there is behind the rest of what was there."""
        if self._ended or self._failure is not None:
            return
        chunks = [self._plaintext] if self._plaintext else []
        read = self._object.read
        try:
            while chunk := read(_RECORD_LEN):
                chunks.append(chunk)
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLError as exc:
            # What came before is good: report this when that is gone.
            self._failure = exc
        self._plaintext = chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def aclose(self) -> None:
        """Say good-bye, not waiting for an answer, and close the network."""
        closed, self._closed = self._closed, True
        try:
            if not closed and not self._sending:
                await self._say_good_bye()
        finally:
            await self.transport.aclose()

    async def _say_good_bye(self) -> None:
        try:
            self._object.unwrap()
        except ssl.SSLError:  # it would read the answer, or is broken
            pass
        if out := self._outgoing.read():
            try:
                await self.transport.send_all(out)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
