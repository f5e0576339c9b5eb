"""A DERP client that stays connected.

Behaviour: tailscale ``derp/derphttp/derphttp_client.go`` and what
``wgengine/magicsock/derp.go`` makes of it; websockets and the fall-back to
them as in Coder's fork. A client is connected to one region, by one
connection at a time. When that is lost it connects again, after a delay that
grows with each failure, and says so in its events.

Each attempt tries the region's nodes in their order. Where Go's client begins
with the first one every time, ours begins behind the node that it tried last,
once round the region, until one has admitted it: a node that takes TCP
connections and then fails does not keep it from the others.

Packets are datagrams: they may be lost, by us too. What waits to be sent when
the connection is lost is dropped, and counted.
"""

from __future__ import annotations

import os
import random as random_module
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, Self

import trio

from tailnet.derp.derpmap import DERPNode, DERPRegion
from tailnet.derp.events import (
    ClientDropReason,
    ClientLimits,
    ClientStatistics,
    Connected,
    ConnectFailed,
    DerpEvent,
    Disconnected,
)
from tailnet.derp.frames import RecvPacket
from tailnet.derp.handshake import ClientInfo
from tailnet.derp.login import (
    CONNECT_TIMEOUT,
    Login,
    UpgradeRefusedError,
    Way,
    log_in,
)
from tailnet.derp.pacing import Backoff
from tailnet.derp.queues import DropOldestQueue
from tailnet.derp.session import Session
from tailnet.errors import ConnectError, DERPMapError, NotConnectedError
from tailnet.headers import HeaderSource, next_headers
from tailnet.keys import NodePrivate, NodePublic
from tailnet.proxy import ProxyRules
from tailnet.transport import ConnectTcp

__all__ = ("DerpClient", "open_derp_client")

# Seconds that leaving the client may take to write what was queued.
_FLUSH_TIMEOUT: Final = 1.0

# What an event without a packet counts for in the receive queue. Bytes.
_EVENT_SIZE: Final = 64


@asynccontextmanager
async def open_derp_client(
    private_key: NodePrivate,
    region_or_nodes: DERPRegion | Sequence[DERPNode],
    *,
    info: ClientInfo | None = None,
    preferred: bool = True,
    wait_while_disconnected: bool = True,
    force_websockets: bool = False,
    on_fallback: Callable[[int, str], object] | None = None,
    headers: HeaderSource = (),
    proxies: ProxyRules | None = None,
    tls_context: ssl.SSLContext | None = None,
    prefer_ipv6: bool = False,
    limits: ClientLimits | None = None,
    connect: ConnectTcp | None = None,
    random: Callable[[], float] = random_module.random,
) -> AsyncGenerator[DerpClient]:
    """Connect to a region's relay, and stay connected.

    The block begins at once, while the client connects; ``wait_connected``
    waits for it. At the end of the block what is queued gets a second to be
    written, then the connection is closed; after an exception or when
    cancelled it is closed at once.

    Args:
        private_key: Who we are.
        region_or_nodes: Where to connect. Nodes are tried in their order.
        info: What to say of ourselves; by default that we answer Ping.
        preferred: This region is our home; see ``note_preferred``.
        wait_while_disconnected: Whether ``send`` and ``send_many`` wait for a
            connection when there is none, or raise NotConnectedError.
        force_websockets: Never try ``Upgrade: DERP``.
        on_fallback: Called with the region's id and a text for people when the
            way to the relay refused ``Upgrade: DERP`` with a status of 400 to
            499, or wanted HTTP/2. From then on the client uses websockets,
            and nothing else.
        headers: More HTTP headers, for gateways on the way; or a function,
            async or not, that returns them anew for each attempt. If it
            raises ConnectError or OSError, the attempt has failed; an async
            one has 10 s.
        proxies: Which HTTP proxy to use, for raw DERP and for websockets.
            None for what the environment says now (``HTTPS_PROXY``,
            ``HTTP_PROXY``, ``NO_PROXY``); ``ProxyRules()`` for none,
            ``ProxyRules.always(url)`` for that one.
        tls_context: Roots and client certificate, for nodes that are neither
            pinned nor insecure, and for proxies; the system's roots if None.
        prefer_ipv6: IPv6 is known to work: IPv4 gets a slower start.
        limits: How much may wait in memory.
        connect: Makes TCP connections; for tests, and for transports of one's
            own.
        random: Returns a number from 0 up to 1, for the delays.

    Raises:
        DERPMapError: There is no node to connect to.
    """
    if isinstance(region_or_nodes, DERPRegion):
        region_id = region_or_nodes.region_id
        nodes = region_or_nodes.nodes or ()
    else:
        nodes = tuple(region_or_nodes)
        region_id = nodes[0].region_id if nodes else 0
    if all(node.stun_only for node in nodes):
        raise DERPMapError(f"region {region_id}: Nodes has no relay")

    way = Way(
        nodes=nodes,
        tls_context=tls_context,
        prefer_ipv6=prefer_ipv6,
        proxies=ProxyRules.from_environment(os.environ) if proxies is None else proxies,
        connect=connect,
    )

    def fall_back(reason: str) -> None:
        if on_fallback is not None:
            on_fallback(region_id, reason)

    client = DerpClient(
        private_key,
        info=ClientInfo(can_ack_pings=True) if info is None else info,
        way=way,
        headers=headers,
        fall_back=fall_back,
        preferred=preferred,
        wait_while_disconnected=wait_while_disconnected,
        force_websockets=force_websockets,
        limits=ClientLimits() if limits is None else limits,
        random=random,
    )
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client._run)
        try:
            yield client
            with trio.move_on_after(_FLUSH_TIMEOUT):
                await client.flush()
        except Exception as exc:
            # Kept out of the nursery, which would wrap it in a group.
            failure = exc
        finally:
            client._close()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class DerpClient:
    """Made by :func:`open_derp_client`. Any number of tasks may use it.

    Iterating over it gives its events, as ``receive`` does.
    """

    def __init__(
        self,
        private_key: NodePrivate,
        *,
        info: ClientInfo,
        way: Way,
        headers: HeaderSource,
        fall_back: Callable[[str], None],
        preferred: bool,
        wait_while_disconnected: bool,
        force_websockets: bool,
        limits: ClientLimits,
        random: Callable[[], float],
    ) -> None:
        self._private_key = private_key
        self._info = info
        self._way = replace(way, trying=self._note_dial)
        self._headers = headers
        self._last_tried: DERPNode | None = None
        self._fall_back = fall_back
        self._preferred = preferred
        self._wait_while_disconnected = wait_while_disconnected
        self._force_websockets = force_websockets
        self._limits = limits
        self._backoff = Backoff(random)
        self._counters = ClientStatistics()
        self._session: Session | None = None
        self._connection: Connected | None = None
        self._closed = False
        self._received: DropOldestQueue[DerpEvent] = DropOldestQueue(
            limits.receive_packets, limits.receive_bytes
        )
        self._receivers = trio.lowlevel.ParkingLot()
        self._connectors = trio.lowlevel.ParkingLot()
        self.public_key = private_key.public()

    # -- connecting ---------------------------------------------------------

    async def _run(self) -> None:
        """Connect, again and again, until cancelled."""
        while True:
            login = await self._try_to_connect()
            if login is not None:
                reason = await self._serve(login)
                delay = self._backoff.next_delay()
                self._deliver(Disconnected(reason, delay))
                await trio.sleep(delay)

    async def _try_to_connect(self) -> Login | None:
        self._counters.connect_attempts += 1
        websocket = self._force_websockets or self.force_websocket_reason is not None
        try:
            headers = await next_headers(self._headers, timeout=CONNECT_TIMEOUT)
            login = await log_in(
                replace(self._way, websocket=websocket, headers=headers),
                self._private_key,
                self._info,
                preferred=(said := self._preferred),
            )
        except ConnectError as exc:
            delay = self._backoff.next_delay()
            self._deliver(ConnectFailed(str(exc), self._backoff.failures, delay))
            if isinstance(exc, UpgradeRefusedError):
                # Coder's forceWebsockets: from the next attempt on, for good.
                self._counters.force_websocket_reason = exc.reason
                self._fall_back(exc.reason)
            else:
                self._begin_behind(self._last_tried)
            await trio.sleep(delay)
            return None
        self._backoff.reset()
        self._begin_behind(None)
        self._counters.connects += 1
        _count(self._counters.connects_by_node, login.node)
        self._counters.fast_starts += login.fast_start
        self._session = Session(login, self._limits, self._counters, self._deliver)
        if said != self._preferred:
            self._session.note_preferred(preferred=self._preferred)
        return login

    def _note_dial(self, node: DERPNode) -> None:
        self._last_tried = node
        _count(self._counters.dials_by_node, node)

    def _begin_behind(self, node: DERPNode | None) -> None:
        """Say where the next attempt begins; None: with the first node."""
        nodes = self._way.nodes
        first = 0 if node is None else (nodes.index(node) + 1) % len(nodes)
        self._way = replace(self._way, first=first)

    async def _serve(self, login: Login) -> str:
        assert self._session is not None
        self._connection = Connected(
            server_key=login.server_key,
            server_info=login.server_info,
            node=login.node,
            remote=login.remote,
            fast_start=login.fast_start,
            websocket=login.channel.websocket is not None,
            tls_version=None if login.tls is None else login.tls.version,
            proxy=login.proxy,
        )
        self._deliver(self._connection)
        self._connectors.unpark_all()
        try:
            return await self._session.run()
        finally:
            self._session = self._connection = None

    def _close(self) -> None:
        """Let everyone who waits know that the client is no more."""
        self._closed = True
        self._receivers.unpark_all()
        self._connectors.unpark_all()

    @property
    def connection(self) -> Connected | None:
        """The present connection, or None."""
        return self._connection

    @property
    def force_websocket_reason(self) -> str | None:
        """Why the client fell back to websockets, or None if it did not."""
        return self._counters.force_websocket_reason

    async def wait_connected(self) -> Connected:
        """Wait until there is a connection, and return its particulars.

        Raises:
            trio.ClosedResourceError: The client is closed.
        """
        await trio.lowlevel.checkpoint()
        while self._connection is None:
            self._check_open()
            await self._connectors.park()
        self._check_open()
        return self._connection

    def reconnect(self, reason: str) -> None:
        """Give the present connection up and connect anew.

        For when something tells that it is no good: a ``ping`` that failed, a
        local address that is gone. Without a connection this does nothing.

        Args:
            reason: For Disconnected.
        """
        if self._session is not None:
            self._session.close(reason)

    def note_preferred(self, preferred: bool, /) -> None:
        """Say whether this region is our home; relays count it.

        Also holds for later connections.
        """
        if preferred == self._preferred:
            return
        self._preferred = preferred
        if self._session is not None:
            self._session.note_preferred(preferred=preferred)

    async def ping(self) -> float:
        """Ask the relay whether the connection lives.

        Returns:
            Seconds until the answer came.

        Raises:
            NotConnectedError: There is no connection, or it was lost.
            trio.TooSlowError: No answer within 5 s. The connection is left as
                it is; ``reconnect`` if that was enough.
        """
        await trio.lowlevel.checkpoint()
        return await self._need_session().ping()

    def statistics(self) -> ClientStatistics:
        """A copy of the counters."""
        session, counters = self._session, self._counters
        return replace(
            counters,
            connected=session is not None,
            node=None if session is None else _name(session.login.node),
            connects_by_node=dict(counters.connects_by_node),
            dials_by_node=dict(counters.dials_by_node),
            packets_dropped=dict(counters.packets_dropped),
            send_queue_packets=0 if session is None else session.waiting,
        )

    # -- sending ------------------------------------------------------------

    async def send(self, dst: NodePublic, packet: bytes) -> None:
        """Queue a packet for ``dst``; wait while the queue is full.

        That it was queued does not mean that it arrives. If the relay has set
        a limit in ServerInfo, what is over that is dropped here.

        Raises:
            LocalProtocolError: It is longer than 65,536 bytes.
            NotConnectedError: There is no connection, and the client was
                opened with ``wait_while_disconnected=False``.
            trio.ClosedResourceError: The client is closed.
        """
        await self.send_many([(dst, packet)])

    async def send_many(self, packets: Iterable[tuple[NodePublic, bytes]]) -> None:
        """Queue packets in order, as ``send`` does with each.

        One task switch for as many as the queue takes, and one write.

        If this is cancelled or raises, some may be queued.

        Args:
            packets: Destination and packet.
        """
        await trio.lowlevel.checkpoint()
        for dst, packet in packets:
            session = self._live_session()
            while session is None or not session.fits(packet):
                self._check_open()
                if session is not None:
                    await session.room.park()
                elif self._wait_while_disconnected:
                    await self._connectors.park()
                else:
                    raise _not_connected()
                session = self._live_session()
            session.put(dst, packet)
        self._check_open()

    def send_nowait(self, dst: NodePublic, packet: bytes) -> None:
        """Queue a packet for ``dst``; the oldest drops if the queue is full.

        Raises:
            LocalProtocolError: It is longer than 65,536 bytes.
            NotConnectedError: There is no connection.
            trio.ClosedResourceError: The client is closed.
        """
        self._need_session().put(dst, packet)

    async def flush(self) -> None:
        """Wait until all that was queued is with the kernel, or dropped."""
        await trio.lowlevel.checkpoint()
        if self._session is not None:
            await self._session.wait_written()

    def _live_session(self) -> Session | None:
        session = self._session
        return None if session is None or session.ended else session

    def _need_session(self) -> Session:
        self._check_open()
        session = self._live_session()
        if session is None:
            raise _not_connected()
        return session

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the DERP client is closed")

    # -- receiving ----------------------------------------------------------

    def _deliver(self, event: DerpEvent) -> None:
        size = len(event.packet) if isinstance(event, RecvPacket) else 0
        dropped = self._received.put(event, size + _EVENT_SIZE)
        if dropped:
            self._counters.packets_dropped[ClientDropReason.RECEIVE_QUEUE_HEAD] += sum(
                isinstance(old, RecvPacket) for old in dropped
            )
        self._receivers.unpark()

    async def receive(self) -> DerpEvent:
        """Take the next event; wait if there is none.

        Events that nobody takes are kept as the limits say; then the oldest
        go, packets or not. The connection does not stop for that: Ping is
        answered and KeepAlive counted whether or not someone receives.

        Raises:
            trio.ClosedResourceError: The client is closed.
        """
        await self._wait_received()
        return self._received.take()

    async def receive_many(self) -> list[DerpEvent]:
        """Take all events that there are, oldest first; wait for one at least.

        Raises:
            trio.ClosedResourceError: The client is closed.
        """
        await self._wait_received()
        return self._received.take_all()

    async def _wait_received(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._received:
            self._check_open()
            await self._receivers.park()
        self._check_open()
        if len(self._received) > 1:
            # Another one may wait for what we leave.
            self._receivers.unpark()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DerpEvent:
        return await self.receive()


def _name(node: DERPNode) -> str:
    return node.name or node.host_name


def _count(counts: dict[str, int], node: DERPNode) -> None:
    counts[_name(node)] = counts.get(_name(node), 0) + 1


def _not_connected() -> NotConnectedError:
    return NotConnectedError("there is no connection to the relay at the moment")
