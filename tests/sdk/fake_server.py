"""A server of the API in memory, on another websocket than ours.

trio-websocket is its end of the wire, so that ours is not made to fit itself;
the calls are served by the library's own server. What it answers, the test
says.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import trio
import trio.testing
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    wrap_server_stream,
)

from tailnet.control.link import CLOSE_NORMAL
from tailnet.control.proto import tailnet_pb2
from tailnet.control.server import Handler, ServerCall, serve_rpc, unary
from tailnet.errors import RpcError

__all__ = ("SERVICE", "FakeServer", "Peer", "ServerLink")

SERVICE = "/coder.tailnet.v2.Tailnet/"


class ServerLink:
    """A Link on trio-websocket."""

    def __init__(self, connection: WebSocketConnection, over: trio.Event) -> None:
        self._connection = connection
        self._over = over
        self._out: deque[bytes] = deque()

    async def receive(self) -> bytes:
        while True:
            try:
                message = await self._connection.get_message()
            except ConnectionClosed:
                self._over.set()
                return b""
            assert isinstance(message, bytes), "text from a client"
            if message:
                return message

    def send_nowait(self, data: bytes) -> None:
        self._out.append(data)

    @property
    def unsent(self) -> int:
        return sum(map(len, self._out))

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        try:
            while self._out:
                await self._connection.send_message(self._out[0])
                self._out.popleft()
        except ConnectionClosed as exc:
            raise trio.BrokenResourceError from exc

    async def aclose(self, code: int = CLOSE_NORMAL, reason: str = "") -> None:
        await self._connection.aclose(code, reason)


@dataclass
class Peer:
    """One connection of a client, with its calls, seen from the server."""

    stream: trio.abc.Stream
    request: WebSocketRequest
    connection: WebSocketConnection
    coordinate: ServerCall | None = None
    maps: ServerCall | None = None
    workspaces: ServerCall | None = None
    coordinate_done: trio.Event = field(default_factory=trio.Event)
    maps_done: trio.Event = field(default_factory=trio.Event)
    workspaces_done: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)

    @property
    def path(self) -> str:
        return urlsplit(self.request.path).path

    @property
    def query(self) -> dict[str, str]:
        parsed = parse_qs(urlsplit(self.request.path).query)
        return {name: values[0] for name, values in parsed.items()}

    @property
    def headers(self) -> dict[str, str]:
        return {
            name.decode().lower(): value.decode()
            for name, value in self.request.headers
        }

    async def next_request(self) -> tailnet_pb2.CoordinateRequest:
        """What the client tells the coordinator next."""
        with trio.fail_after(60):
            while self.coordinate is None:
                await trio.testing.wait_all_tasks_blocked()
            message = await self.coordinate.receive()
        assert message is not None, "the client has ended coordination"
        return tailnet_pb2.CoordinateRequest.FromString(message)

    async def respond(self, **fields: object) -> None:
        """Send a CoordinateResponse."""
        with trio.fail_after(60):
            while self.coordinate is None:
                await trio.testing.wait_all_tasks_blocked()
        response = tailnet_pb2.CoordinateResponse(**fields)  # type: ignore[arg-type]
        await self.coordinate.send(response.SerializeToString())

    async def change_workspaces(self, **fields: object) -> None:
        """Send a WorkspaceUpdate."""
        with trio.fail_after(60):
            while self.workspaces is None:
                await trio.testing.wait_all_tasks_blocked()
        update = tailnet_pb2.WorkspaceUpdate(**fields)  # type: ignore[arg-type]
        await self.workspaces.send(update.SerializeToString())

    async def cut(self) -> None:
        """Drop the connection without a word."""
        await trio.aclose_forcefully(self.stream)


@dataclass
class FakeServer:
    """Takes connections as ``connect`` of a client.

    Attributes:
        nursery: Where its connections live.
        refusals: What to answer to the next ones: status, content type and
            body; no connection at all for None.
        maps: What StreamDERPMaps sends at once.
        resume: What RefreshResumeToken answers; an RpcError to refuse.
    """

    nursery: trio.Nursery
    refusals: deque[tuple[int, str, bytes] | None] = field(default_factory=deque)
    maps: list[tailnet_pb2.DERPMap] = field(
        default_factory=lambda: [tailnet_pb2.DERPMap(home_params={})]
    )
    resume: tailnet_pb2.RefreshResumeTokenResponse | RpcError = field(
        default_factory=lambda: RpcError("no", 12)
    )
    dialed: list[tuple[float, str, int]] = field(default_factory=list)
    refreshes: int = 0

    def __post_init__(self) -> None:
        self._push, self._peers = trio.open_memory_channel[Peer](math.inf)

    async def connect(
        self, host: str, port: int, family: socket.AddressFamily
    ) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if family == socket.AF_INET6:
            raise OSError("no IPv6 here")
        self.dialed.append((trio.current_time(), host, port))
        if self.refusals and self.refusals[0] is None:
            self.refusals.popleft()
            raise ConnectionRefusedError("refused")
        near, far = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._serve, far)
        return near

    async def accept(self) -> Peer:
        """The next connection that was not refused."""
        with trio.fail_after(600):
            peer = await self._peers.receive()
            await trio.testing.wait_all_tasks_blocked()
        return peer

    async def _serve(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            if self.refusals:
                refusal = self.refusals.popleft()
                assert refusal is not None
                status, content_type, body = refusal
                headers = [(b"Content-Type", content_type.encode())]
                with contextlib.suppress(ConnectionClosed):  # it has what it needs
                    await request.reject(status, extra_headers=headers, body=body)
                return
            connection = await request.accept()
            peer = Peer(stream, request, connection)
            self._push.send_nowait(peer)
            link = ServerLink(connection, peer.over)
            await serve_rpc(link, self._handlers(peer))
            peer.over.set()
            nursery.cancel_scope.cancel()

    def _handlers(self, peer: Peer) -> Mapping[str, Handler]:
        async def coordinate(call: ServerCall) -> None:
            peer.coordinate = call
            await peer.coordinate_done.wait()

        async def maps(call: ServerCall) -> None:
            peer.maps = call
            await call.receive()
            for derp_map in self.maps:
                await call.send(derp_map.SerializeToString())
            await peer.maps_done.wait()

        async def workspaces(call: ServerCall) -> None:
            peer.workspaces = call
            await peer.workspaces_done.wait()

        async def refresh(_: ServerCall, __: bytes) -> bytes:
            self.refreshes += 1
            if isinstance(self.resume, RpcError):
                raise self.resume
            return self.resume.SerializeToString()

        return {
            f"{SERVICE}Coordinate": coordinate,
            f"{SERVICE}StreamDERPMaps": maps,
            f"{SERVICE}WorkspaceUpdates": workspaces,
            f"{SERVICE}RefreshResumeToken": unary(refresh),
        }
