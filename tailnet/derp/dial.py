"""Reaching a node of a DERP map: DNS, TCP and TLS.

Rules: tailscale ``derp/derphttp/derphttp_client.go`` dialRegion, dialNode and
tlsClient, and ``net/tlsdial/tlsdial.go``. The nodes of a region are tried in
their order, and the first that gives a TCP connection is it: what fails after
that fails the attempt. For each node IPv4 and IPv6 race.

Unlike Go's client this one has no roots of its own beside the system's, and
does not look for an HTTP proxy.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeAlias

import trio

from tailnet.derp.certificates import (
    check_certificate_name,
    check_pinned_certificate,
    find_meta_key,
)
from tailnet.derp.derpmap import PIN_PREFIX, DERPNode
from tailnet.derp.tls_stream import TlsStream
from tailnet.errors import ConnectError, RemoteProtocolError
from tailnet.keys import NodePublic

__all__ = (
    "DEFAULT_DERP_PORT",
    "DIAL_NODE_TIMEOUT",
    "IPV4_DELAY",
    "ConnectTcp",
    "TlsFacts",
    "connect_tcp",
    "derp_port",
    "dial_node",
    "dial_region",
    "start_tls",
)

DEFAULT_DERP_PORT: Final = 443

# derphttp_client.go dialNodeTimeout. Seconds for DNS and TCP of one node.
DIAL_NODE_TIMEOUT: Final = 1.5

# derphttp_client.go dialNode: the head start of IPv6 where it is known to work.
IPV4_DELAY: Final = 0.2

ConnectTcp: TypeAlias = Callable[
    [str, int, socket.AddressFamily], Awaitable[trio.abc.Stream]
]


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """What the TLS handshake has told.

    Attributes:
        version: ``TLSv1.3`` or ``TLSv1.2``.
        alpn: The application protocol that was agreed on, if any.
        server_key: The relay's key from its meta certificate: fast start is
            possible. None if there is none, or under TLS 1.2.
    """

    version: str
    alpn: str | None = None
    server_key: NodePublic | None = None


def derp_port(node: DERPNode) -> int:
    """The TCP port of a node."""
    return node.derp_port or DEFAULT_DERP_PORT


async def dial_region(
    nodes: Sequence[DERPNode],
    *,
    prefer_ipv6: bool = False,
    connect: ConnectTcp | None = None,
) -> tuple[trio.abc.Stream, DERPNode]:
    """Connect to the first node that takes a TCP connection.

    Args:
        nodes: Of one region, best first. Those with STUN only are skipped.
        prefer_ipv6: See :func:`dial_node`.
        connect: See :func:`dial_node`.

    Returns:
        The connection, and the node at its other end.

    Raises:
        ConnectError: No node can be reached. It tells of the first one.
    """
    first_error: ConnectError | None = None
    for node in nodes:
        if node.stun_only:
            continue
        try:
            stream = await dial_node(node, prefer_ipv6=prefer_ipv6, connect=connect)
        except ConnectError as exc:
            first_error = first_error or exc
        else:
            return stream, node
    raise first_error or ConnectError("the region has no node that relays")


async def dial_node(
    node: DERPNode,
    *,
    prefer_ipv6: bool = False,
    connect: ConnectTcp | None = None,
) -> trio.abc.Stream:
    """Connect to a node by TCP; IPv4 and IPv6 race where both are possible.

    Args:
        node: Its ``ipv4`` and ``ipv6`` are addresses to use, or empty for what
            DNS says of its host name; anything else turns that family off.
        prefer_ipv6: IPv6 is known to work: IPv4 starts 0.2 s later.
        connect: Makes one TCP connection; :func:`connect_tcp` if None.

    Raises:
        ConnectError: Nothing came about within 1.5 s.
    """
    connect = connect or connect_tcp
    ways = _ways(node)
    where = node.name or node.host_name
    if not ways:
        raise ConnectError(f"{where}: both IPv4 and IPv6 are disabled for this node")
    winner: trio.abc.Stream | None = None
    first_error: OSError | None = None

    async def race(host: str, family: socket.AddressFamily) -> None:
        nonlocal winner, first_error
        if family == socket.AF_INET and prefer_ipv6 and len(ways) > 1:
            await trio.sleep(IPV4_DELAY)
        try:
            stream = await connect(host, derp_port(node), family)
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
        with trio.move_on_after(DIAL_NODE_TIMEOUT):
            async with trio.open_nursery() as nursery:
                for host, family in ways:
                    nursery.start_soon(race, host, family)
    except BaseException:  # cancelled, just when someone had won
        if winner is not None:
            await trio.aclose_forcefully(winner)
        raise
    if winner is not None:
        return winner
    if first_error is None:
        raise ConnectError(f"{where}: no connection within {DIAL_NODE_TIMEOUT} s")
    raise ConnectError(f"{where}: {first_error}") from first_error


def _ways(node: DERPNode) -> list[tuple[str, socket.AddressFamily]]:
    """The addresses or names to try, with their family."""
    ways = []
    for field, version, family in (
        (node.ipv4, 4, socket.AF_INET),
        (node.ipv6, 6, socket.AF_INET6),
    ):
        if field and _ip_version(field) != version:
            continue
        host = field or node.host_name
        # A host name that is an address itself has one family.
        if _ip_version(host) in (None, version):
            ways.append((host, family))
    return ways


def _ip_version(text: str) -> int | None:
    """4 or 6, or None if ``text`` is no IP address."""
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return None


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


# -- TLS --------------------------------------------------------------------


async def start_tls(
    stream: trio.abc.Stream,
    node: DERPNode,
    *,
    context: ssl.SSLContext | None = None,
) -> tuple[TlsStream, TlsFacts]:
    """Begin TLS, and make sure that the other side is ``node``.

    How depends on the node's ``cert_name``:

    - ``sha256-raw:`` and a hash: that very certificate, no roots.
    - Another name: the certificate must be for that name, while SNI asks for
      the host name (domain fronting).
    - Empty: a chain to the roots for the host name; or no check at all if the
      node has ``insecure_for_tests``.

    SNI is not sent for IP addresses. ALPN is not offered, unless ``context``
    does.

    Args:
        stream: The TCP connection. Closed if this fails.
        node: Who should be at the other end.
        context: Roots and client certificate; None for the system's roots.
            Not used for nodes that are pinned or insecure. To check a name
            other than the host name, its roots are copied, nothing else.

    Raises:
        ConnectError: No TLS, or not the right certificate.
    """
    where = node.name or node.host_name
    pin = other_name = None
    if node.cert_name.startswith(PIN_PREFIX):
        pin = node.cert_name.removeprefix(PIN_PREFIX)
        context = _unchecked_context()
    elif node.cert_name and node.cert_name != node.host_name:
        other_name = node.cert_name
        context = _any_name_context(context)
    elif node.insecure_for_tests:
        context = _unchecked_context()
    elif context is None:
        context = _default_context()
    tls = TlsStream(stream, context, server_hostname=node.host_name)
    try:
        await tls.do_handshake()
        chain = tls.peer_chain()
        if pin is not None:
            check_pinned_certificate(
                chain, pin, server_name=_sni(node.host_name), now=datetime.now(UTC)
            )
        if other_name is not None:
            check_certificate_name(chain[0], other_name)
        version = str(tls.version)
        return tls, TlsFacts(
            version=version,
            alpn=tls.alpn,
            # derphttp_client.go connect: only from 1.3 on are certificates
            # encrypted, so that no middlebox has replaced this one.
            server_key=find_meta_key(chain) if version == "TLSv1.3" else None,
        )
    except trio.BrokenResourceError as exc:
        await trio.aclose_forcefully(tls)
        cause = exc.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message
        elif isinstance(cause, ssl.SSLError):
            reason = cause.reason or str(cause)
        else:
            reason = str(cause or exc) or "the relay closed the connection"
        raise ConnectError(f"{where}: TLS failed: {reason}") from exc
    except RemoteProtocolError as exc:
        await trio.aclose_forcefully(tls)
        raise ConnectError(f"{where}: {exc}") from exc
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise


def _sni(host_name: str) -> str:
    """What Go asks for in SNI (crypto/tls hostnameInSNI)."""
    return "" if _ip_version(host_name) else host_name.rstrip(".")


def _default_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Python 3.13 began to refuse private roots that leave optional extensions
    # out; Go's client takes them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _unchecked_context() -> ssl.SSLContext:
    """Takes any certificate; whoever uses it has other means to check."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _any_name_context(base: ssl.SSLContext | None) -> ssl.SSLContext:
    """Takes any certificate that leads to the roots of ``base``."""
    context = _default_context() if base is None else _unchecked_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if base is not None and (roots := base.get_ca_certs(binary_form=True)):
        context.load_verify_locations(cadata=b"".join(roots))
    return context
