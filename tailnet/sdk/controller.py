"""A client's connection to the control plane, which is made again when lost.

coder ``tailnet/controllers.go`` Controller: on each connection coordination,
the DERP map and, where wanted, workspace updates; when one of them ends the
whole connection is closed and dialed again. What the user wants and knows
lives here and outlives connections.
"""

from __future__ import annotations

import os
import random as random_module
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final
from uuid import UUID

import structlog
import trio
from google.protobuf.message import DecodeError

from tailnet.control.client import ClientCall, RpcClient, open_rpc_client
from tailnet.control.convert import derp_map_from_proto
from tailnet.control.drpc import UNIMPLEMENTED
from tailnet.control.proto import tailnet_pb2
from tailnet.derp.derpmap import DERPMap
from tailnet.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    RpcError,
    TailnetError,
)
from tailnet.headers import HeaderSource
from tailnet.proxy import ProxyRules
from tailnet.sdk.access import Access
from tailnet.sdk.coordination import CoordinationState, PeerUpdate
from tailnet.sdk.dialer import Dialed, Dialer
from tailnet.sdk.embedded import rewrite_embedded_relays
from tailnet.sdk.latest import Latest
from tailnet.sdk.pacing import RedialDelays
from tailnet.sdk.resume import decode_resume_token
from tailnet.sdk.workspaces import WorkspaceChange, WorkspaceView
from tailnet.transport import ConnectTcp

__all__ = (
    "AGENT_PATH",
    "DISCONNECT_TIMEOUT",
    "REANNOUNCE_TIMEOUT",
    "USER_PATH",
    "ControlStatistics",
    "Tailnet",
    "open_control",
    "open_tailnet",
)

log = structlog.get_logger("tailnet.sdk")

# Of a user's own view, and of one agent's clients.
USER_PATH: Final = "/api/v2/tailnet"
AGENT_PATH: Final = "/api/v2/workspaceagents/{}/coordinate"

_SERVICE: Final = "/coder.tailnet.v2.Tailnet/"

# controllers.go gracefulCoordinatorDisconnectTimeout, roughly. Seconds that
# leaving waits for the coordinator to end the stream.
DISCONNECT_TIMEOUT: Final = 1.0

# Ours: seconds on a new connection after which a peer that it has brought
# nothing of is lost. The coordinator replays what it has at once; the time is
# for peers who lost it at the same moment and return a little later than we.
REANNOUNCE_TIMEOUT: Final = 5.0

# What drpcmux says of a method that it does not know; its code is 0.
_UNKNOWN_RPC: Final = "unknown rpc"

# Updates that wait for the user; then the coordinator is made to wait, too.
_MAX_WAITING_UPDATES: Final = 1024
_MAX_WAITING_CHANGES: Final = 16

# CLIs dial 2.0; 2.3 brought WorkspaceUpdates.
_AGENT_VERSION: Final = "2.0"
_USER_VERSION: Final = "2.3"


@dataclass(frozen=True, slots=True)
class ControlStatistics:
    """How the connection to the control plane fares.

    Attributes:
        connected: Whether there is one now.
        dials: Times that one was tried.
        connects: Those that worked.
        last_failure: Why the last dial that failed, or the last connection
            that was lost, did or was; None if there was none.
        tunnels: Tunnels that are wanted.
        peers: Peers whose node is known.
        resumable: There is a resume token for the next dial.
    """

    connected: bool
    dials: int
    connects: int
    last_failure: str | None
    tunnels: int
    peers: int
    resumable: bool


@asynccontextmanager
async def open_tailnet(
    url: str,
    token: str,
    agent_id: UUID | None = None,
    *,
    headers: HeaderSource = (),
    proxies: ProxyRules | None = None,
    tls_context: ssl.SSLContext | None = None,
    connect: ConnectTcp | None = None,
    random: Callable[[], float] = random_module.random,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncGenerator[Tailnet]:
    """Connect to a server's control plane, and stay connected.

    The block begins when the first dial has worked; until then what may pass
    by is tried again, as long as the caller lets it. At the end of the block
    peers are told that we leave, and the coordinator has a second to do so;
    only if the block is cancelled they are not.

    Args:
        url: Of the server, ``https://coder.example.com``.
        token: Of a user.
        agent_id: The one agent to talk to. None for the user's own view:
            tunnels to any agent, and workspace updates.
        headers: More HTTP headers, see :func:`tailnet.open_derp_client`.
        proxies: Which HTTP proxy to use; None for what the environment says
            now, ``ProxyRules()`` for none.
        tls_context: Roots and client certificate; the system's roots if None.
        connect: Makes TCP connections; for tests, and for transports of one's
            own.
        random: Returns a number from 0 up to 1, for the delays.
        now: Wall time, with a zone.

    Raises:
        ConfigError: The URL is wrong.
        ApiError: The server refuses for good: 400, 401, 403, 404, 409 or 500
            before any dial has worked.
    """
    access = Access.parse(
        url,
        token,
        headers=headers,
        proxies=ProxyRules.from_environment(os.environ) if proxies is None else proxies,
        tls_context=tls_context,
        connect=connect,
    )
    path, version = USER_PATH, _USER_VERSION
    if agent_id is not None:
        path, version = AGENT_PATH.format(agent_id), _AGENT_VERSION
    async with open_control(
        access, path, version=version, random=random, now=now
    ) as tailnet:
        yield tailnet


@asynccontextmanager
async def open_control(
    access: Access,
    path: str,
    *,
    version: str,
    random: Callable[[], float] = random_module.random,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AsyncGenerator[Tailnet]:
    """What :func:`open_tailnet` does, at any endpoint with the Tailnet service.

    Agents have theirs at ``/api/v2/workspaceagents/me/rpc``.

    Args:
        access: The server.
        path: Of the endpoint.
        version: Of the control protocol that we speak, ``major.minor``.
        random: Returns a number from 0 up to 1, for the delays.
        now: Wall time, with a zone.

    Raises:
        ApiError: As there.
    """
    dialer = Dialer(access, path, version=version, random=random, now=now)
    tailnet = Tailnet(access, dialer, random=random, is_for_user=path == USER_PATH)
    first = await dialer.dial()
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tailnet._run, first)
        try:
            yield tailnet
        except Exception as exc:
            # Kept out of the nursery, which would wrap it in a group.
            failure = exc
        finally:
            tailnet._close()
        await tailnet._leave()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@dataclass(slots=True)
class _Subscription:
    """Someone who follows an owner's workspaces."""

    owner_id: UUID
    changes: trio.MemorySendChannel[WorkspaceChange]
    view: WorkspaceView = field(default_factory=WorkspaceView)
    has_begun: bool = False


class _Connection:
    """What there is while there is a connection."""

    def __init__(self, rpc: RpcClient, nursery: trio.Nursery) -> None:
        self.rpc = rpc
        self._nursery = nursery
        self.reason = ""
        self.coordination_over = trio.Event()

    def end(self, reason: str) -> None:
        """Close it soon. The first reason stands."""
        self.reason = self.reason or reason
        self._nursery.cancel_scope.cancel()

    def start(self, what: str, serve: Callable[[], Awaitable[None]]) -> None:
        """Run a stream of the connection; when it ends, so does that."""
        self._nursery.start_soon(self._run, what, serve)

    def start_quietly(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run something whose end means nothing."""
        self._nursery.start_soon(serve)

    async def _run(self, what: str, serve: Callable[[], Awaitable[None]]) -> None:
        try:
            await serve()
        except (TailnetError, trio.BrokenResourceError) as exc:
            self.end(f"{what}: {exc}")
        else:
            self.end(f"{what} has ended")


class Tailnet:
    """Made by :func:`open_tailnet`. Any number of tasks may use it."""

    def __init__(
        self,
        access: Access,
        dialer: Dialer,
        *,
        random: Callable[[], float],
        is_for_user: bool,
    ) -> None:
        self._access = access
        self._dialer = dialer
        self._random = random
        self._is_for_user = is_for_user
        self._coordination = CoordinationState()
        self._requests = trio.lowlevel.ParkingLot()
        self._push_update, self._updates = trio.open_memory_channel[PeerUpdate](
            _MAX_WAITING_UPDATES
        )
        self._derp_map: Latest[DERPMap] = Latest()
        self._subscriptions: list[_Subscription] = []
        self._connection: _Connection | None = None
        self._connectors = trio.lowlevel.ParkingLot()
        self._lost_reason: str | None = None
        self._leaving = False
        self._stopped = trio.Event()

    # -- coordination -------------------------------------------------------

    def update_node(self, node: tailnet_pb2.Node) -> None:
        """Say who and where we are, to all who share a tunnel with us.

        Said anew on each connection, until there is another one.

        Args:
            node: Copied.
        """
        self._coordination.update_node(node)
        self._requests.unpark_all()

    def add_tunnel(self, peer_id: UUID) -> None:
        """Open a tunnel to an agent; kept until it is removed.

        A server that forbids it ends coordination, and so the connection,
        each time: see ``statistics().last_failure``.
        """
        self._coordination.add_tunnel(peer_id)
        self._requests.unpark_all()

    def remove_tunnel(self, peer_id: UUID) -> None:
        """Close a tunnel."""
        self._coordination.remove_tunnel(peer_id)
        self._requests.unpark_all()

    def ready_for_handshake(self, peer_ids: Iterable[UUID]) -> None:
        """Tell peers that WireGuard knows them. Agents do; clients may not."""
        self._coordination.ready_for_handshake(peer_ids)
        self._requests.unpark_all()

    @property
    def peer_updates(self) -> AsyncIterator[PeerUpdate]:
        """What becomes of peers, in order.

        One for all: an update goes to one reader. Over a reconnect peers stay;
        those that the new connection has brought nothing of after 5 s come as
        LOST. Whoever does not read makes the coordinator wait, and the
        coordinator drops who makes it wait for long.
        """
        return self._updates

    # -- what the server tells ----------------------------------------------

    @property
    def derp_map(self) -> DERPMap | None:
        """The latest DERP map, see ``derp_maps``; None before the first."""
        return self._derp_map.value

    def derp_maps(self) -> AsyncIterator[DERPMap]:
        """The DERP map, and each change of it, for any number of readers.

        Embedded relays are where this client reaches the server.
        """
        return aiter(self._derp_map)

    def workspace_updates(
        self, owner_id: UUID
    ) -> trio.MemoryReceiveChannel[WorkspaceChange]:
        """What an owner's workspaces are, and how they change.

        The first change has all there is. What changed while there was no
        connection comes with the next one, deletions too. To stop, close it.

        Args:
            owner_id: A user whom ours may see.

        Raises:
            LocalProtocolError: The connection is for one agent only.
        """
        if not self._is_for_user:
            raise LocalProtocolError(
                "workspace updates need open_tailnet without an agent"
            )
        push, changes = trio.open_memory_channel[WorkspaceChange](_MAX_WAITING_CHANGES)
        subscription = _Subscription(owner_id, push)
        self._subscriptions.append(subscription)
        if self._connection is not None:
            self._follow(self._connection, subscription)
        return changes

    # -- state --------------------------------------------------------------

    async def wait_connected(self) -> None:
        """Wait until there is a connection.

        Raises:
            trio.ClosedResourceError: The block has been left.
        """
        await trio.lowlevel.checkpoint()
        while self._connection is None:
            if self._leaving:
                raise trio.ClosedResourceError("this tailnet is closed")
            await self._connectors.park()

    def reconnect(self, reason: str) -> None:
        """Give the present connection up, and dial again.

        Args:
            reason: For the log and the statistics.
        """
        if self._connection is not None:
            self._connection.end(reason)

    def statistics(self) -> ControlStatistics:
        """How it fares."""
        dialer = self._dialer
        return ControlStatistics(
            connected=self._connection is not None,
            dials=dialer.dials,
            connects=dialer.connects,
            last_failure=dialer.last_failure or self._lost_reason,
            tunnels=len(self._coordination.tunnels),
            peers=len(self._coordination.peers),
            resumable=dialer.resume_token is not None,
        )

    # -- life ---------------------------------------------------------------

    async def _run(self, dialed: Dialed) -> None:
        try:
            while not self._leaving:
                reason = await self._serve(dialed)
                if self._leaving:
                    break
                self._lost_reason, self._dialer.last_failure = reason, None
                log.info("connection lost", server=self._access.url, reason=reason)
                dialed = await self._dialer.dial()
        finally:
            self._stopped.set()

    async def _serve(self, dialed: Dialed) -> str:
        """Use a connection until it ends; returns why it did."""
        async with dialed.open_link() as link, open_rpc_client(link) as rpc:
            try:
                async with trio.open_nursery() as nursery:
                    connection = _Connection(rpc, nursery)
                    self._start_streams(connection)
                    self._connection = connection
                    self._connectors.unpark_all()
                    connection.end(await rpc.wait_closed() or "the server has left")
            finally:
                self._connection = None
                self._coordination.connection_lost()
        return connection.reason

    def _start_streams(self, connection: _Connection) -> None:
        # In the order of Go's client.
        connection.start("coordination", partial(self._coordinate, connection))
        connection.start("DERP maps", partial(self._stream_derp_maps, connection.rpc))
        connection.start_quietly(partial(self._keep_resume_token, connection.rpc))
        for subscription in list(self._subscriptions):
            self._follow(connection, subscription)

    def _close(self) -> None:
        """Let everyone who waits know that there will be nothing more."""
        self._leaving = True
        self._derp_map.close()
        self._push_update.close()
        for subscription in self._subscriptions:
            subscription.changes.close()
        self._connectors.unpark_all()

    async def _leave(self) -> None:
        connection = self._connection
        if connection is None:
            return
        self._coordination.disconnect()
        self._requests.unpark_all()
        with trio.move_on_after(DISCONNECT_TIMEOUT):
            await connection.coordination_over.wait()
        connection.end("left")
        # The websocket's own good-bye has its own second.
        await self._stopped.wait()

    # -- streams ------------------------------------------------------------

    async def _coordinate(self, connection: _Connection) -> None:
        async with connection.rpc.call(f"{_SERVICE}Coordinate") as call:
            self._coordination.connection_made()
            connection.start_quietly(partial(self._send_requests, call))
            connection.start_quietly(self._lose_unheard_peers)
            try:
                async for message in call:
                    for update in self._coordination.receive_response(message):
                        await self._tell(update)
            finally:
                connection.coordination_over.set()

    async def _send_requests(self, call: ClientCall) -> None:
        try:
            while True:
                while (request := self._coordination.next_request()) is None:
                    await self._requests.park()
                await call.send(request)
        except trio.BrokenResourceError:
            pass  # the receiving side knows why

    async def _lose_unheard_peers(self) -> None:
        await trio.sleep(REANNOUNCE_TIMEOUT)
        for update in self._coordination.lose_unheard():
            await self._tell(update)

    async def _tell(self, update: PeerUpdate) -> None:
        try:
            await self._push_update.send(update)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # nobody reads any more; the connection is for the rest

    async def _stream_derp_maps(self, rpc: RpcClient) -> None:
        async with rpc.call(f"{_SERVICE}StreamDERPMaps") as call:
            await call.send(tailnet_pb2.StreamDERPMapsRequest().SerializeToString())
            await call.close_send()
            async for message in call:
                derp_map = derp_map_from_proto(_parse_derp_map(message))
                self._derp_map.set(rewrite_embedded_relays(derp_map, self._access))

    def _follow(self, connection: _Connection, subscription: _Subscription) -> None:
        async def run() -> None:
            try:
                await self._stream_workspaces(connection.rpc, subscription)
            except (TailnetError, trio.BrokenResourceError) as exc:
                connection.end(f"workspace updates: {exc}")
            else:
                if subscription in self._subscriptions:
                    connection.end("workspace updates have ended")

        connection.start_quietly(run)

    async def _stream_workspaces(
        self, rpc: RpcClient, subscription: _Subscription
    ) -> None:
        request = tailnet_pb2.WorkspaceUpdatesRequest(
            workspace_owner_id=subscription.owner_id.bytes
        )
        subscription.view.connection_made()
        async with rpc.call(f"{_SERVICE}WorkspaceUpdates") as call:
            await call.send(request.SerializeToString())
            await call.close_send()
            async for message in call:
                change = subscription.view.receive_update(message)
                if subscription.has_begun and not change:
                    continue  # a reconnect that brought no news
                try:
                    await subscription.changes.send(change)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._subscriptions.remove(subscription)
                    return
                subscription.has_begun = True

    async def _keep_resume_token(self, rpc: RpcClient) -> None:
        delays = RedialDelays(self._random)
        while True:
            try:
                token = decode_resume_token(
                    await rpc.unary(f"{_SERVICE}RefreshResumeToken", b"")
                )
            except (RpcError, RemoteProtocolError) as exc:
                if isinstance(exc, RpcError) and _is_unsupported(exc):
                    return  # an older server; reconnects get a new id then
                log.info("no resume token", server=self._access.url, reason=str(exc))
                await trio.sleep(delays.next_delay())
            except TailnetError:
                return  # the connection is over, and others say so
            else:
                delays = RedialDelays(self._random)
                self._dialer.resume_token = token
                await trio.sleep(token.refresh_in)


def _is_unsupported(exc: RpcError) -> bool:
    return exc.code == UNIMPLEMENTED or _UNKNOWN_RPC in exc.text


def _parse_derp_map(data: bytes) -> tailnet_pb2.DERPMap:
    try:
        return tailnet_pb2.DERPMap.FromString(data)
    except DecodeError as exc:
        raise RemoteProtocolError("the server sent a broken DERP map") from exc
