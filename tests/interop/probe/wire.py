"""Connections of the probe: bytes to a relay and back, and nothing hidden.

However a relay ends a connection (FIN, RST, with or without a TLS alert), the
probe sees the same end: clients do not tell these apart either.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

__all__ = ("Target", "Wire", "open_wire")

_CONNECT_TIMEOUT: Final = 20.0
_HEX_KEY: Final = re.compile(r"\b[0-9a-f]{64}\b")


@dataclass(frozen=True, slots=True)
class Target:
    """A relay to probe.

    Attributes:
        host: An IP address of this machine.
        port: Its DERP port.
        tls: Whether that port speaks TLS.
        http_port: Its plain helper port, if it has one.
        stun_port: Its STUN port, if it has one.
    """

    host: str
    port: int
    tls: bool = False
    http_port: int | None = None
    stun_port: int | None = None

    @property
    def authority(self) -> str:
        """What a Host header names."""
        return f"{self.bracketed_host}:{self.port}"

    @property
    def bracketed_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def mask(self, text: str) -> str:
        """``text`` without what differs from relay to relay."""
        text = text.replace(f":{self.port}", ":<port>")
        if self.http_port is not None:
            text = text.replace(f":{self.http_port}", ":<http port>")
        text = text.replace(self.bracketed_host, "<host>")
        return _HEX_KEY.sub("<64 hex digits>", text)


class Wire:
    """One connection.

    Args:
        stream: Where the bytes go.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def send(self, data: bytes) -> None:
        """Send ``data``; it is no error if the relay has closed by then."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def receive(self) -> bytes:
        """Some bytes, or none at the end of the connection."""
        try:
            return bytes(await self._stream.receive_some(65536))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def receive_within(self, seconds: float) -> bytes | None:
        """Like :meth:`receive`; None if nothing comes for ``seconds``."""
        with trio.move_on_after(seconds):
            return await self.receive()
        return None

    async def closes_within(self, seconds: float) -> bool:
        """Whether the relay ends the connection; reads what comes before."""
        with trio.move_on_after(seconds):
            while await self.receive():
                pass
            return True
        return False

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


@asynccontextmanager
async def open_wire(
    target: Target,
    *,
    port: int | None = None,
    tls: bool | None = None,
    receive_buffer: int | None = None,
) -> AsyncIterator[Wire]:
    """Connect to a relay, and close at the end.

    Args:
        target: The relay.
        port: Another port of it.
        tls: Whether to speak TLS there; what the relay speaks if None.
        receive_buffer: Bytes that the kernel shall buffer for us.
    """
    wire = await dial(target, port=port, tls=tls, receive_buffer=receive_buffer)
    try:
        yield wire
    finally:
        await wire.aclose()


async def dial(
    target: Target,
    *,
    port: int | None = None,
    tls: bool | None = None,
    receive_buffer: int | None = None,
) -> Wire:
    """Connect to a relay; the caller closes. See :func:`open_wire`."""
    family = trio.socket.AF_INET6 if ":" in target.host else trio.socket.AF_INET
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        with trio.fail_after(_CONNECT_TIMEOUT):
            if receive_buffer is not None:
                # Before connecting: the window is negotiated from it.
                sock.setsockopt(
                    trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer
                )
            await sock.connect((target.host, target.port if port is None else port))
            stream: trio.abc.Stream = trio.SocketStream(sock)
            if target.tls if tls is None else tls:
                secured = trio.SSLStream(
                    stream, client_context(), server_hostname=target.host
                )
                await secured.do_handshake()
                stream = secured
    except BaseException:
        sock.close()
        raise
    return Wire(stream)


def client_context() -> ssl.SSLContext:
    """TLS as a DERP client with ``InsecureForTests`` does it: no ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
