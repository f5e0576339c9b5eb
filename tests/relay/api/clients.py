"""A client of the API on a socket: websocket, and calls over it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from relay.api.router import Route, Router
from relay.front.router import Front
from tailnet.control.client import RpcClient, open_rpc_client
from tailnet.derp.websocket import WebsocketStream
from tailnet.errors import LocalProtocolError
from tests.relay.api.rig import Rig


class ClientLink:
    """The client's end of a websocket, as a Link."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.websocket = WebsocketStream(server=False)
        self._kept = b""
        self._sending = trio.Lock()

    async def receive(self) -> bytes:
        while not self.websocket.closed:
            data = await self._stream.receive_some()
            if not data:
                return b""
            payload = self.websocket.receive_data(bytes(data))
            if self.websocket.pending:
                self._kept += self.websocket.data_to_send()
                await self.flush()
            if payload:
                return payload
        return b""

    def send_nowait(self, data: bytes) -> None:
        try:
            self._kept += self.websocket.encode(data)
        except LocalProtocolError:
            pass  # closed

    @property
    def unsent(self) -> int:
        return len(self._kept)

    async def flush(self) -> None:
        async with self._sending:
            while self._kept:
                data, self._kept = self._kept, b""
                await self._stream.send_all(data)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self.websocket.close(code, reason)
        self._kept += self.websocket.data_to_send()
        try:
            await self.flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await self._stream.aclose()


class ApiClient:
    """Makes connections to a router, each served in a nursery."""

    def __init__(
        self, rig: Rig, routes: tuple[Route, ...], nursery: trio.Nursery
    ) -> None:
        self._nursery = nursery
        self._front = Front(derp=None, pages=Router(rig.context, routes).answer)

    def connect(self) -> trio.SocketStream:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            far = socket.create_connection(listener.getsockname(), timeout=5)
            near, _ = listener.accept()
        near.setblocking(False)
        self._nursery.start_soon(self._front.serve, near)
        return trio.SocketStream(trio.socket.from_stdlib_socket(far))

    async def upgrade(
        self, target: str, *, token: str = "", headers: str = ""
    ) -> tuple[bytes, ClientLink]:
        """Ask for a websocket; the head of the answer, and what follows it."""
        stream = self.connect()
        await stream.send_all(
            (
                f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                f"Coder-Session-Token: {token}\r\n{headers}\r\n"
            ).encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            # A byte at a time, to leave the frames behind the head alone.
            piece = await stream.receive_some(1)
            if not piece:
                break
            head += piece
        return head, ClientLink(stream)

    @asynccontextmanager
    async def call(self, target: str, *, token: str) -> AsyncIterator[RpcClient]:
        """Calls over a websocket."""
        head, link = await self.upgrade(target, token=token)
        assert head.startswith(b"HTTP/1.1 101 "), head
        async with open_rpc_client(link) as client:
            yield client


@asynccontextmanager
async def open_api(rig: Rig, routes: tuple[Route, ...]) -> AsyncIterator[ApiClient]:
    """A client of some routes, with a heart beat behind them."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.context.heartbeats.run)
        yield ApiClient(rig, routes, nursery)
        nursery.cancel_scope.cancel()
