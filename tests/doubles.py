"""The other ends of what is tested: clients of the relay, byte by byte.

They speak with the library's own codecs, whose tests have vectors, and never
wait: what a client does with its socket, the test decides.
"""

from __future__ import annotations

import functools
import ssl
from typing import Protocol

import trustme

from relay.front.tls import PureTls
from tailnet.derp.websocket import WebsocketStream

__all__ = (
    "ClientCodec",
    "PlainCodec",
    "StackedCodec",
    "TlsClient",
    "WebsocketClient",
    "client_context",
    "server_context",
    "tls_pair",
)

HOST = "relay.example"


@functools.cache
def _ca() -> trustme.CA:
    return trustme.CA()


@functools.cache
def server_context() -> ssl.SSLContext:
    """A relay's context for HOST, set up like ``relay.front.certificates``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _ca().issue_cert(HOST).configure_cert(context)
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_context(
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """A context that trusts :func:`server_context`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    _ca().configure_trust(context)
    return context


class ClientCodec(Protocol):
    """What stands between DERP and the socket, on the client's side."""

    @property
    def closed(self) -> bool:
        """Whether the relay has said goodbye."""
        ...

    def encode(self, data: bytes) -> bytes:
        """Bytes of DERP to bytes of the network."""
        ...

    def decode(self, data: bytes) -> bytes:
        """Bytes of the network to bytes of DERP."""
        ...


class PlainCodec:
    """Nothing between DERP and TCP."""

    closed = False

    def encode(self, data: bytes) -> bytes:
        return data

    def decode(self, data: bytes) -> bytes:
        return data


class TlsClient:
    """A client's end of TLS, in memory."""

    def __init__(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.object = client_context(version).wrap_bio(
            self._incoming, self._outgoing, server_hostname=HOST
        )
        self.closed = False

    def handshake(self, data: bytes = b"") -> bytes:
        """Go on with the handshake; returns bytes for the relay."""
        self._incoming.write(data)
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def encode(self, data: bytes) -> bytes:
        if data:
            self.object.write(data)
        return self._outgoing.read()

    def decode(self, data: bytes) -> bytes:
        self._incoming.write(data)
        chunks = []
        try:
            while chunk := self.object.read(1 << 16):
                chunks.append(chunk)
            self.closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        return b"".join(chunks)

    def close(self) -> bytes:
        """Bytes that say close_notify."""
        try:
            self.object.unwrap()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()


class WebsocketClient:
    """A client's end of a websocket whose handshake is done."""

    def __init__(self) -> None:
        self.stream = WebsocketStream(server=False)

    @property
    def closed(self) -> bool:
        return self.stream.closed

    def encode(self, data: bytes) -> bytes:
        return self.stream.data_to_send() + (self.stream.encode(data) if data else b"")

    def decode(self, data: bytes) -> bytes:
        return self.stream.receive_data(data)


class StackedCodec:
    """One codec in another: a websocket in TLS."""

    def __init__(self, inner: ClientCodec, outer: ClientCodec) -> None:
        self._inner = inner
        self._outer = outer

    @property
    def closed(self) -> bool:
        return self._inner.closed or self._outer.closed

    def encode(self, data: bytes) -> bytes:
        return self._outer.encode(self._inner.encode(data))

    def decode(self, data: bytes) -> bytes:
        return self._inner.decode(self._outer.decode(data))


def tls_pair(
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> tuple[PureTls, TlsClient]:
    """Both ends of a connection whose TLS handshake is done."""
    server, client = PureTls(server_context()), TlsClient(version)
    to_server = client.handshake()
    while not server.ready or to_server:
        assert server.feed(to_server) == b""
        to_server = client.handshake(server.take())
    return server, client
