"""Reaching a node of a DERP map: DNS, TCP and TLS.

Rules: tailscale ``derp/derphttp/derphttp_client.go`` dialRegion, dialNode and
tlsClient, and ``net/tlsdial/tlsdial.go``. The nodes of a region are tried in
their order, and the first that gives a TCP connection is it: what fails after
that fails the attempt. For each node IPv4 and IPv6 race.

A proxy takes the place of that race: it is asked for the node by its host
name, whatever addresses the map has.

Unlike Go's client this one has no roots of its own beside the system's.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import trio

from tailnet.derp.certificates import (
    check_certificate_name,
    check_pinned_certificate,
    find_meta_key,
)
from tailnet.derp.derpmap import PIN_PREFIX, DERPNode
from tailnet.errors import ConfigError, ConnectError, RemoteProtocolError
from tailnet.keys import NodePublic
from tailnet.proxy import Proxy, ProxyRules
from tailnet.tls_stream import TlsStream, default_tls_context, tls_failure
from tailnet.transport import (
    ConnectTcp,
    Target,
    connect_through,
    ip_version,
    race_tcp,
)

__all__ = (
    "DEFAULT_DERP_PORT",
    "DIAL_NODE_TIMEOUT",
    "DIAL_PROXY_TIMEOUT",
    "IPV4_DELAY",
    "Dialed",
    "TlsFacts",
    "derp_port",
    "dial_node",
    "dial_region",
    "start_tls",
)

DEFAULT_DERP_PORT: Final = 443

# derphttp_client.go dialNodeTimeout. Seconds for DNS and TCP of one node.
DIAL_NODE_TIMEOUT: Final = 1.5

# Ours, for a node by way of a proxy. Go has no limit but that of the whole
# attempt, so that one node that hangs behind the proxy would be all of it.
DIAL_PROXY_TIMEOUT: Final = 5.0

# derphttp_client.go dialNode: the head start of IPv6 where it is known to work.
IPV4_DELAY: Final = 0.2


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


@dataclass(frozen=True, slots=True)
class Dialed:
    """A connection to a node.

    Attributes:
        stream: TCP, or what a proxy makes of it. Whoever has it, closes it.
        node: The node at the other end.
        proxy: On the way there; None if there is none.
    """

    stream: trio.abc.Stream
    node: DERPNode
    proxy: Proxy | None = None


async def dial_region(
    nodes: Sequence[DERPNode],
    *,
    prefer_ipv6: bool = False,
    proxies: ProxyRules | None = None,
    tls_context: ssl.SSLContext | None = None,
    connect: ConnectTcp | None = None,
    trying: Callable[[DERPNode], object] | None = None,
) -> Dialed:
    """Connect to the first node that takes a TCP connection.

    Args:
        nodes: Of one region, best first. Those with STUN only are skipped.
        prefer_ipv6: See :func:`dial_node`.
        proxies: See :func:`dial_node`.
        tls_context: See :func:`dial_node`.
        connect: See :func:`dial_node`.
        trying: Called with each node before it is dialed.

    Raises:
        ConnectError: No node can be reached. It tells of the first one.
    """
    first_error: ConnectError | None = None
    for node in nodes:
        if node.stun_only:
            continue
        if trying is not None:
            trying(node)
        try:
            return await dial_node(
                node,
                prefer_ipv6=prefer_ipv6,
                proxies=proxies,
                tls_context=tls_context,
                connect=connect,
            )
        except ConnectError as exc:
            first_error = first_error or exc
    raise first_error or ConnectError("the region has no node that relays")


async def dial_node(
    node: DERPNode,
    *,
    prefer_ipv6: bool = False,
    proxies: ProxyRules | None = None,
    tls_context: ssl.SSLContext | None = None,
    connect: ConnectTcp | None = None,
) -> Dialed:
    """Connect to a node by TCP; IPv4 and IPv6 race where both are possible.

    Args:
        node: Its ``ipv4`` and ``ipv6`` are addresses to use, or empty for what
            DNS says of its host name; anything else turns that family off.
        prefer_ipv6: IPv6 is known to work: IPv4 starts 0.2 s later.
        proxies: Whether to go through a proxy, and which; None for never.
        tls_context: Roots for a proxy that speaks TLS.
        connect: Makes one TCP connection; a socket if None.

    Raises:
        ConnectError: Nothing came about within 1.5 s; by way of a proxy,
            within 5 s.
    """
    try:
        proxy = _proxy_for(node, proxies or ProxyRules())
        if proxy is None:
            return Dialed(await _dial_directly(node, prefer_ipv6, connect), node)
        stream = await connect_through(
            proxy,
            node.host_name,
            derp_port(node),
            timeout=DIAL_PROXY_TIMEOUT,
            context=tls_context,
            connect=connect,
        )
    except (ConfigError, ConnectError, OSError) as exc:
        raise ConnectError(f"{node.name or node.host_name}: {exc}") from exc
    return Dialed(stream, node, proxy)


def _proxy_for(node: DERPNode, proxies: ProxyRules) -> Proxy | None:
    scheme: Final = "http" if node.force_http else "https"
    return proxies.proxy_for(scheme, node.host_name, derp_port(node))


async def _dial_directly(
    node: DERPNode, prefer_ipv6: bool, connect: ConnectTcp | None
) -> trio.abc.Stream:
    targets = _targets(node)
    if not targets:
        raise ConnectError("both IPv4 and IPv6 are disabled for this node")
    return await race_tcp(
        targets,
        derp_port(node),
        timeout=DIAL_NODE_TIMEOUT,
        ipv4_delay=IPV4_DELAY if prefer_ipv6 else 0.0,
        connect=connect,
    )


def _targets(node: DERPNode) -> list[Target]:
    """The addresses or names to try, with their family."""
    targets = []
    for field, version, family in (
        (node.ipv4, 4, socket.AF_INET),
        (node.ipv6, 6, socket.AF_INET6),
    ):
        if field and ip_version(field) != version:
            continue
        host = field or node.host_name
        # A host name that is an address itself has one family.
        if ip_version(host) in (None, version):
            targets.append((host, family))
    return targets


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
        context = default_tls_context()
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
        raise ConnectError(f"{where}: TLS failed: {tls_failure(exc)}") from exc
    except RemoteProtocolError as exc:
        await trio.aclose_forcefully(tls)
        raise ConnectError(f"{where}: {exc}") from exc
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise


def _sni(host_name: str) -> str:
    """What Go asks for in SNI (crypto/tls hostnameInSNI)."""
    return "" if ip_version(host_name) else host_name.rstrip(".")


def _unchecked_context() -> ssl.SSLContext:
    """Takes any certificate; whoever uses it has other means to check."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _any_name_context(base: ssl.SSLContext | None) -> ssl.SSLContext:
    """Takes any certificate that leads to the roots of ``base``."""
    context = default_tls_context() if base is None else _unchecked_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if base is not None and (roots := base.get_ca_certs(binary_form=True)):
        context.load_verify_locations(cadata=b"".join(roots))
    return context
