"""Websockets whose messages mean something, byte by byte."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing
from wsproto.connection import Connection, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    TextMessage,
)

from relay.api.context import ApiRequest
from relay.api.messages import MAX_MESSAGE_LEN, MessageSocket, accept_messages
from relay.front.application import Takeover
from relay.front.router import Front
from relay.pages.page import Request, Response
from tests.relay.api.rig import VERSION, Rig, open_rig
from tests.relay.front.test_router import Client

HEAD = (
    b"GET /x HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
Serve = Callable[[MessageSocket], Awaitable[None]]


class Peer:
    """A client of a websocket of messages."""

    def __init__(self, client: Client, early: bytes) -> None:
        self.client = client
        self.connection = Connection(ConnectionType.CLIENT)
        self.connection.receive_data(early)

    async def send(self, *events: Event) -> None:
        await self.raw(b"".join(self.connection.send(event) for event in events))

    async def raw(self, data: bytes) -> None:
        self.client.sock.sendall(data)
        await trio.lowlevel.checkpoint()

    async def receive(self) -> Event | None:
        """The next event; None at the end of the connection."""
        while True:
            for event in self.connection.events():
                return event
            data = await self.client.answer()
            if data == b"(silence)":
                # The server has sent it, but Nagle's algorithm holds it back
                # until we acknowledge what came before.
                data = self.client.sock.recv(1 << 16)
            if not data:
                return None
            self.connection.receive_data(data)


@asynccontextmanager
async def connected(
    tmp_path: Path, serve: Serve, head: bytes = HEAD
) -> AsyncIterator[Peer]:
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        client = Client(Front(derp=None, pages=answering(rig, serve)), nursery)
        answer = await client.ask(head + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert f"X-Coder-Build-Version: {VERSION}\r\n".encode() in answer
        try:
            yield Peer(client, answer.partition(b"\r\n\r\n")[2])
        finally:
            client.sock.close()
        nursery.cancel_scope.cancel()


def answering(
    rig: Rig, serve: Serve
) -> Callable[[Request], Awaitable[Response | Takeover]]:
    async def answer(request: Request) -> Response | Takeover:
        return accept_messages(ApiRequest(request, {}, rig.context, rig.alice), serve)

    return answer


async def echo(messages: MessageSocket) -> None:
    while (message := await messages.receive()) is not None:
        await messages.send(message)


async def test_messages_keep_their_kind(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected(tmp_path, echo) as peer:
        await peer.send(TextMessage(data="grüß"))
        event = await peer.receive()
        assert isinstance(event, TextMessage)
        assert event.data == "grüß"
        await peer.send(BytesMessage(data=b"\x00\xff"))
        event = await peer.receive()
        assert isinstance(event, BytesMessage)
        assert bytes(event.data) == b"\x00\xff"


async def test_fragments_and_pings_between(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected(tmp_path, echo) as peer:
        await peer.send(
            TextMessage(data="a", message_finished=False),
            Ping(payload=b"p"),
            TextMessage(data="b", message_finished=True),
        )
        pong = await peer.receive()
        assert isinstance(pong, Pong)
        assert bytes(pong.payload) == b"p"
        event = await peer.receive()
        assert isinstance(event, TextMessage)
        assert event.data == "ab"


async def test_close_is_answered(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected(tmp_path, echo) as peer:
        await peer.send(CloseConnection(code=1001, reason="goodbye"))
        event = await peer.receive()
        assert isinstance(event, CloseConnection)
        assert event.code == 1001
        assert await peer.receive() is None


async def test_the_server_closes_when_it_is_done(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def greet(messages: MessageSocket) -> None:
        await messages.send("hello")
        await messages.ping()

    async with connected(tmp_path, greet) as peer:
        events = [await peer.receive() for _ in range(3)]
        assert isinstance(events[0], TextMessage)
        assert isinstance(events[1], Ping)
        assert isinstance(events[2], CloseConnection)
        assert (events[2].code, events[2].reason) == (1001, "goodbye")


async def test_the_longest_message(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected(tmp_path, echo) as peer:
        await peer.send(BytesMessage(data=bytes(MAX_MESSAGE_LEN)))
        size = 0
        while size < MAX_MESSAGE_LEN:
            event = await peer.receive()
            assert isinstance(event, BytesMessage)
            size += len(event.data)
        assert size == MAX_MESSAGE_LEN


@pytest.mark.parametrize(
    "events",
    [
        [BytesMessage(data=bytes(MAX_MESSAGE_LEN + 1))],
        [BytesMessage(data=bytes(MAX_MESSAGE_LEN // 2), message_finished=False)] * 3,
    ],
    ids=["at once", "in fragments"],
)
async def test_a_longer_one_ends_it(
    tmp_path: Path, events: list[Event], autojump_clock: trio.testing.MockClock
) -> None:
    async with connected(tmp_path, echo) as peer:
        await peer.send(*events)
        event = await peer.receive()
        assert isinstance(event, CloseConnection)
        assert event.code == 1009


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x82\x01x", 1002),  # no mask
        (b"\xf2\x81\0\0\0\0x", 1002),  # reserved bits
        (b"\x81\x81\0\0\0\0\xff", 1007),  # no UTF-8
    ],
)
async def test_wrong_frames_end_it(
    tmp_path: Path, frame: bytes, code: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with connected(tmp_path, echo) as peer:
        await peer.raw(frame)
        event = await peer.receive()
        assert isinstance(event, CloseConnection)
        assert event.code == code


async def test_half_a_message_and_the_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    received: list[object] = []

    async def serve(messages: MessageSocket) -> None:
        received.append(await messages.receive())

    async with connected(tmp_path, serve) as peer:
        await peer.raw(b"\x82\x85\0\0\0\0ab")
        peer.client.sock.shutdown(socket.SHUT_WR)
        while await peer.receive() is not None:
            pass
    assert received == [None]


async def test_what_is_no_websocket(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await answering(rig, echo)(Request("GET", "/x", "/x"))
        assert isinstance(answer, Response)
        assert answer.status == 426
        headers = tuple(
            (name.lower(), value)
            for name, _, value in (
                line.partition(b": ") for line in HEAD.split(b"\r\n")[1:] if line
            )
        )
        foreign = (*headers, (b"origin", b"https://evil.example"))
        answer = await answering(rig, echo)(Request("GET", "/x", "/x", headers=foreign))
        assert isinstance(answer, Response)
        assert answer.status == 403


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes.fromhex("810178"), 1002),
        (bytes.fromhex("8181 00000000 ff"), 1007),
        (bytes.fromhex("82fe 8001 00000000") + bytes(MAX_MESSAGE_LEN + 1), 1009),
    ],
    ids=["unmasked", "no-text", "too-big"],
)
async def test_what_a_client_does_wrong_is_logged(
    data: bytes, code: int, tmp_path: Path
) -> None:
    async def serve(messages: MessageSocket) -> None:
        assert await messages.receive() is None

    with structlog.testing.capture_logs() as logs:
        async with connected(tmp_path, serve) as peer:
            await peer.raw(data)
            event = await peer.receive()
            assert isinstance(event, CloseConnection)
            assert event.code == code
    (entry,) = logs
    assert (entry["event"], entry["path"]) == ("a websocket broke", "/x")
    assert entry["reason"]
