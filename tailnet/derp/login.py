"""From nothing to a connection on which a relay has admitted us.

Order of things: tailscale ``derp/derphttp/derphttp_client.go`` connect, with
the websocket and its fallback as in Coder's fork of it. One attempt, one
connection; trying again is the client's business.

A login ends with ServerInfo. Go's client begins to send before that; but what
it sends to a relay that then turns it away is lost, and a relay sends
ServerInfo as soon as the client is registered.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from tailnet.derp.connection import ClientConnection, ServerGreeting
from tailnet.derp.derpmap import DERPNode
from tailnet.derp.dial import (
    DEFAULT_DERP_PORT,
    Dialed,
    TlsFacts,
    derp_port,
    dial_region,
    start_tls,
)
from tailnet.derp.exchange import READ_LEN, exchange, read_body
from tailnet.derp.frames import encode_note_preferred
from tailnet.derp.handshake import ClientInfo, ServerInfo
from tailnet.derp.upgrade import (
    ResponseHead,
    encode_upgrade_request,
)
from tailnet.derp.websocket import (
    WebsocketStream,
    check_websocket_response,
    encode_websocket_request,
    generate_websocket_key,
)
from tailnet.errors import ConnectError, RemoteProtocolError
from tailnet.keys import NodePrivate, NodePublic
from tailnet.proxy import ProxyRules, join_host_port
from tailnet.transport import ConnectTcp

__all__ = (
    "CONNECT_TIMEOUT",
    "Channel",
    "Login",
    "UpgradeRefusedError",
    "Way",
    "log_in",
)

# derphttp_client.go connect: seconds for DNS, TCP, TLS, HTTP and DERP.
CONNECT_TIMEOUT: Final = 10.0

# Of a refusal's text; it goes into a message for people.
_MAX_REASON_LEN: Final = 1024
_REASON_TIMEOUT: Final = 1.0

_HTTP_PORT: Final = 80


class UpgradeRefusedError(ConnectError):
    """The way to the relay lets no ``Upgrade: DERP`` pass; try a websocket.

    Attributes:
        reason: For people; Coder's text.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the relay did not switch to DERP: {reason}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Way:
    """How to reach a relay.

    Attributes:
        nodes: Of one region, best first.
        first: Which of them to try first; after the last one comes the first.
        websocket: Carry DERP in a websocket.
        headers: More HTTP headers, for proxies on the way.
        tls_context: See :func:`tailnet.derp.dial.start_tls`.
        prefer_ipv6: See :func:`tailnet.derp.dial.dial_node`.
        proxies: See :func:`tailnet.derp.dial.dial_node`.
        connect: See :func:`tailnet.derp.dial.dial_node`.
        trying: Called with each node before it is dialed.
    """

    nodes: Sequence[DERPNode]
    first: int = 0
    websocket: bool = False
    headers: Sequence[tuple[str, str]] = ()
    tls_context: ssl.SSLContext | None = None
    prefer_ipv6: bool = False
    proxies: ProxyRules | None = None
    connect: ConnectTcp | None = None
    trying: Callable[[DERPNode], object] | None = None


@dataclass(slots=True)
class Channel:
    """A DERP connection on a stream, within websocket messages or not.

    One task may send while another receives.
    """

    stream: trio.abc.Stream
    connection: ClientConnection
    websocket: WebsocketStream | None = None
    _replies: bytes = b""

    @property
    def has_replies(self) -> bool:
        """The websocket wants something sent: call ``send``, with b"" at least."""
        return bool(self._replies)

    async def send(self, frames: bytes) -> None:
        """Write whole frames, in one go.

        If this is cancelled or raises, part of them may have gone: close the
        stream.

        Raises:
            trio.BrokenResourceError: The connection is gone.
        """
        if self.websocket is not None:
            replies, self._replies = self._replies, b""
            # Nothing may come behind a Close.
            closed = self.websocket.closed
            frames = replies if closed else replies + self.websocket.encode(frames)
        await self.stream.send_all(frames)

    async def receive(self) -> bool:
        """Read once; then take what there is with ``connection.next_event``.

        Returns:
            False if the relay has closed the connection.

        Raises:
            trio.BrokenResourceError: The connection is gone.
            RemoteProtocolError: The websocket's rules are broken.
        """
        data = bytes(await self.stream.receive_some(READ_LEN))
        if not data:
            return False
        self.add(data)
        return self.websocket is None or not self.websocket.closed

    def add(self, data: bytes) -> None:
        """Take bytes that have been read already.

        Raises:
            RemoteProtocolError: The websocket's rules are broken.
        """
        if self.websocket is not None:
            try:
                data = self.websocket.receive_data(data)
            finally:
                self._replies += self.websocket.data_to_send()
        if data:
            self.connection.receive_data(data)


@dataclass(frozen=True, slots=True)
class Login:
    """A connection to a relay that has admitted us.

    Attributes:
        channel: To send and receive frames. Whoever has it, closes it.
        node: The node at the other end.
        server_key: Its key, proven by the box around ServerInfo.
        server_info: What it says of itself.
        fast_start: The login saved a round trip thanks to the meta
            certificate.
        remote: Its address and port, as text.
        tls: None without TLS.
        proxy: The proxy on the way, as text; None if there is none.
    """

    channel: Channel
    node: DERPNode
    server_key: NodePublic
    server_info: ServerInfo
    fast_start: bool
    remote: str
    tls: TlsFacts | None
    proxy: str | None = None


async def log_in(
    way: Way, private_key: NodePrivate, info: ClientInfo, *, preferred: bool
) -> Login:
    """Connect to a relay and shake hands, within 10 s.

    Args:
        way: How to reach it.
        private_key: Who we are.
        info: What to say of ourselves.
        preferred: This relay is our home.

    Raises:
        ConnectError: It did not work. What of the connection there was, is
            closed.
    """
    with trio.move_on_after(CONNECT_TIMEOUT):
        dialed = await dial_region(
            [*way.nodes[way.first :], *way.nodes[: way.first]],
            prefer_ipv6=way.prefer_ipv6,
            proxies=way.proxies,
            tls_context=way.tls_context,
            connect=way.connect,
            trying=way.trying,
        )
        stream = dialed.stream
        where = dialed.node.name or dialed.node.host_name
        try:
            return await _log_in_on(dialed, way, private_key, info, preferred)
        except ConnectError:
            await trio.aclose_forcefully(stream)
            raise
        except (trio.BrokenResourceError, RemoteProtocolError) as exc:
            await trio.aclose_forcefully(stream)
            reason = str(exc) or "the connection broke"
            raise ConnectError(f"{where}: {reason}") from exc
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
    raise ConnectError(f"no connection within {CONNECT_TIMEOUT} s")


async def _log_in_on(
    dialed: Dialed,
    way: Way,
    private_key: NodePrivate,
    info: ClientInfo,
    preferred: bool,
) -> Login:
    node = dialed.node
    remote = _remote_name(dialed)
    stream, tls = dialed.stream, None
    if not node.force_http:
        stream, tls = await start_tls(stream, node, context=way.tls_context)
    server_key = None
    if way.websocket:
        websocket, rest = await _open_websocket(stream, node, way)
        channel = Channel(stream, ClientConnection(private_key, info), websocket)
        channel.add(rest)
    elif tls is not None and tls.alpn == "h2":
        raise UpgradeRefusedError(
            "The server wanted us to use HTTP/2, "
            "but DERP requires Upgrade which needs HTTP/1.1"
        )
    else:
        server_key = None if tls is None else tls.server_key
        head = _upgrade_request(node, way, fast_start=server_key is not None)
        connection = ClientConnection(private_key, info, server_key=server_key)
        channel = Channel(stream, connection)
        if server_key is None:
            channel.add(await _upgrade(stream, head))
    # A relay takes a client for not at home until it is told.
    home = encode_note_preferred(preferred=True) if preferred else b""
    fast_start = server_key is not None
    if server_key is None:
        greeting = await _wait_event(channel, ServerGreeting)
        server_key = greeting.key
        await channel.send(channel.connection.data_to_send() + home)
    else:
        # There is no answer to wait for.
        await stream.send_all(head + channel.connection.data_to_send() + home)
    return Login(
        channel=channel,
        node=node,
        server_key=server_key,
        # With fast start, ServerKey comes before it and means nothing now.
        server_info=await _wait_event(channel, ServerInfo),
        fast_start=fast_start,
        remote=remote,
        tls=tls,
        proxy=None if dialed.proxy is None else str(dialed.proxy),
    )


EventT = TypeVar("EventT", ServerGreeting, ServerInfo)


async def _wait_event(channel: Channel, kind: type[EventT]) -> EventT:
    """Wait for an event of the handshake; whatever else comes is skipped."""
    while True:
        while (event := channel.connection.next_event()) is not None:
            if isinstance(event, kind):
                return event
        received = await channel.receive()
        if channel.has_replies:
            await channel.send(b"")
        if not received:
            # derpserver.go just closes when it refuses.
            raise ConnectError("the relay closed the connection before it admitted us")


def _remote_name(dialed: Dialed) -> str:
    stream, node = dialed.stream, dialed.node
    if isinstance(stream, trio.SocketStream) and dialed.proxy is None:
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # gone already; whoever uses it next will see
            pass
        else:
            return join_host_port(host, port)
    return join_host_port(node.host_name, derp_port(node))


# -- HTTP -------------------------------------------------------------------


def _host_header(node: DERPNode) -> str:
    """derphttp_client.go urlString: the port only if it is not the scheme's."""
    usual = _HTTP_PORT if node.force_http else DEFAULT_DERP_PORT
    port = derp_port(node)
    if port != usual:
        return join_host_port(node.host_name, port)
    return f"[{node.host_name}]" if ":" in node.host_name else node.host_name


def _upgrade_request(node: DERPNode, way: Way, *, fast_start: bool) -> bytes:
    ideal = way.nodes[0]
    return encode_upgrade_request(
        _host_header(node),
        ideal_node=None if node == ideal else ideal.name,
        fast_start=fast_start,
        headers=way.headers,
    )


async def _upgrade(stream: trio.abc.Stream, request: bytes) -> bytes:
    """Ask for DERP by HTTP; return what came behind the answer already."""
    head = await exchange(stream, request)
    if head.status != 101:
        text = await _read_text(stream, head)
        # Coder's derphttp_client.go: a 5xx may be a gateway that has no relay
        # at the moment, and 200 or 3xx anything at all.
        if 400 <= head.status < 500:
            raise UpgradeRefusedError(
                f"GET failed with status code {head.status} (a proxy could be "
                f"disallowing the use of 'Upgrade: derp'): {text}"
            )
        raise ConnectError(f"GET failed: {head.status} {head.reason}: {text}")
    return head.rest


async def _open_websocket(
    stream: trio.abc.Stream, node: DERPNode, way: Way
) -> tuple[WebsocketStream, bytes]:
    """Ask for a websocket; return what came behind the answer, too."""
    key = generate_websocket_key()
    request = encode_websocket_request(_host_header(node), key, headers=way.headers)
    head = await exchange(stream, request)
    if head.status != 101:
        text = await _read_text(stream, head)
        raise ConnectError(f"no websocket: {head.status} {head.reason}: {text}")
    check_websocket_response(head, key)
    return WebsocketStream(server=False), head.rest


async def _read_text(stream: trio.abc.Stream, head: ResponseHead) -> str:
    """The beginning of a refusal's body, as far as it comes soon."""
    body = await read_body(
        stream, head, max_len=_MAX_REASON_LEN, timeout=_REASON_TIMEOUT
    )
    return body.decode("utf-8", "replace")
