"""Connections to a name: TCP, a proxy in between if there is to be one, TLS.

What a DERP map adds to this is in ``derp/dial.py``.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import trio

from tailnet.errors import ConnectError, RemoteProtocolError
from tailnet.proxy import ConnectAnswer, ConnectReader, Proxy, encode_connect
from tailnet.tls_stream import TlsStream, default_tls_context, tls_failure

__all__ = (
    "ConnectTcp",
    "Target",
    "connect_tcp",
    "connect_through",
    "host_targets",
    "ip_version",
    "race_tcp",
    "start_host_tls",
)

ConnectTcp: TypeAlias = Callable[
    [str, int, socket.AddressFamily], Awaitable[trio.abc.Stream]
]

# A name or an address to connect to, and by which family.
Target: TypeAlias = tuple[str, socket.AddressFamily]

# An answer is one read.
_READ_LEN: Final = 4 << 10


def ip_version(text: str) -> int | None:
    """4 or 6, or None if ``text`` is no IP address."""
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return None


def host_targets(host: str) -> list[Target]:
    """How to reach a host: by both families, or by the one of its address."""
    return [
        (host, family)
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6))
        if ip_version(host) in (None, version)
    ]


async def connect_tcp(
    host: str, port: int, family: socket.AddressFamily
) -> trio.abc.Stream:
    """Connect to the first address of ``host`` that accepts.

    Args:
        host: A DNS name or an IP address.
        port: TCP port.
        family: IPv4 or IPv6; no other is tried.

    Raises:
        OSError: No address in DNS, or none that accepts.
    """
    found = await trio.socket.getaddrinfo(
        host, port, family=family, type=socket.SOCK_STREAM
    )
    last_error: OSError | None = None
    for address_family, kind, protocol, _, address in found:
        sock = trio.socket.socket(address_family, kind, protocol)
        try:
            await sock.connect(address)
        except OSError as exc:
            last_error = exc
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return trio.SocketStream(sock)  # sets TCP_NODELAY
    raise last_error or OSError(f"no address for {host}")


async def race_tcp(
    targets: Sequence[Target],
    port: int,
    *,
    timeout: float,  # noqa: ASYNC109 - what it ends is an OSError like others
    ipv4_delay: float = 0.0,
    connect: ConnectTcp | None = None,
) -> trio.abc.Stream:
    """Connect to several targets at once; the first connection is it.

    Args:
        targets: At least one.
        port: TCP port.
        timeout: Seconds for DNS and TCP.
        ipv4_delay: Seconds that IPv4 starts later, if there is IPv6.
        connect: Makes one connection; :func:`connect_tcp` if None.

    Raises:
        OSError: Nothing came about. The first failure, or a TimeoutError.
    """
    connect = connect or connect_tcp
    winner: trio.abc.Stream | None = None
    first_error: OSError | None = None

    async def race(host: str, family: socket.AddressFamily) -> None:
        nonlocal winner, first_error
        if family == socket.AF_INET and len(targets) > 1 and ipv4_delay:
            await trio.sleep(ipv4_delay)
        try:
            stream = await connect(host, port, family)
        except OSError as exc:
            first_error = first_error or exc
            return
        if winner is not None:
            # The loser was done already when it was told to stop.
            await trio.aclose_forcefully(stream)
            return
        winner = stream
        nursery.cancel_scope.cancel()

    try:
        with trio.move_on_after(timeout):
            async with trio.open_nursery() as nursery:
                for host, family in targets:
                    nursery.start_soon(race, host, family)
    except BaseException:  # cancelled, just when someone had won
        if winner is not None:
            await trio.aclose_forcefully(winner)
        raise
    if winner is not None:
        return winner
    raise first_error or TimeoutError(f"no connection within {timeout} s")


# -- proxies ----------------------------------------------------------------


async def connect_through(
    proxy: Proxy,
    host: str,
    port: int,
    *,
    timeout: float,  # noqa: ASYNC109 - what it ends is a ConnectError like others
    context: ssl.SSLContext | None = None,
    connect: ConnectTcp | None = None,
) -> trio.abc.Stream:
    """Connect to a host by way of a proxy, which looks its name up.

    Args:
        proxy: An HTTP proxy.
        host: DNS name or IP address.
        port: TCP port.
        timeout: Seconds for the proxy, and for what it does.
        context: Roots for an https proxy; the system's if None.
        connect: See :func:`race_tcp`.

    Returns:
        The connection to the host; its first byte is the host's.

    Raises:
        ConnectError: It did not work; the text begins with the proxy.
    """
    with trio.move_on_after(timeout):
        try:
            stream = await race_tcp(
                host_targets(proxy.host), proxy.port, timeout=timeout, connect=connect
            )
        except OSError as exc:
            raise ConnectError(f"proxy {proxy}: {exc}") from exc
        try:
            if proxy.tls:
                stream = await start_host_tls(stream, proxy.host, context=context)
            await stream.send_all(encode_connect(proxy, host, port))
            answer = await _read_answer(stream)
        except ConnectError as exc:
            await trio.aclose_forcefully(stream)
            raise ConnectError(f"proxy {proxy}: {exc}") from exc
        except (trio.BrokenResourceError, RemoteProtocolError) as exc:
            await trio.aclose_forcefully(stream)
            reason = str(exc) or "the connection broke"
            raise ConnectError(f"proxy {proxy}: {reason}") from exc
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if answer.connected and not answer.rest:
            return stream
        await trio.aclose_forcefully(stream)
        if answer.connected:
            # In both protocols that come through here the client speaks first.
            raise ConnectError(f"proxy {proxy}: it sent something of its own")
        raise ConnectError(f"proxy {proxy}: {answer.status} {answer.reason}".rstrip())
    raise ConnectError(f"proxy {proxy}: no connection within {timeout} s")


async def _read_answer(stream: trio.abc.Stream) -> ConnectAnswer:
    reader = ConnectReader()
    while True:
        data = bytes(await stream.receive_some(_READ_LEN))
        answer = reader.receive_data(data)
        if answer is not None:
            return answer


# -- TLS --------------------------------------------------------------------


async def start_host_tls(
    stream: trio.abc.Stream, host: str, *, context: ssl.SSLContext | None = None
) -> TlsStream:
    """Begin TLS with whoever has a certificate for ``host``.

    Args:
        stream: The TCP connection. Closed if this fails.
        host: DNS name or IP address.
        context: Roots and client certificate; None for the system's roots.

    Raises:
        ConnectError: No TLS, or not the right certificate.
    """
    context = default_tls_context() if context is None else context
    tls = TlsStream(stream, context, server_hostname=host)
    try:
        await tls.do_handshake()
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(tls)
        raise ConnectError(f"TLS failed: {tls_failure(exc)}") from exc
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls
