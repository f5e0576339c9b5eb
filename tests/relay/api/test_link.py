"""Websockets of the API as byte streams, and the heart beat."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from relay.api.link import (
    HEARTBEAT_INTERVAL,
    Heartbeats,
    WebsocketLink,
    accept_websocket,
    send_only,
)
from relay.front.application import Takeover
from relay.front.router import Front
from relay.pages.page import Request, Response
from tailnet.derp.websocket import WebsocketStream
from tailnet.errors import RemoteProtocolError
from tests.relay.front.test_router import Client

ASK = (
    b"GET /x HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
Serve = Callable[[WebsocketLink], Awaitable[None]]


@asynccontextmanager
async def connected(
    serve: Serve, heartbeats: Heartbeats | None = None
) -> AsyncIterator[tuple[Client, WebsocketStream]]:
    beats = heartbeats or Heartbeats()

    async def answer(request: Request) -> Response | Takeover:
        return accept_websocket(request, beats, serve, headers=(("X-More", "1"),))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beats.run)
        client = Client(Front(derp=None, pages=answer), nursery)
        head = await client.ask(ASK + b"\r\n")
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"X-More: 1\r\n" in head
        assert b"Sec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
        websocket = WebsocketStream(server=False)
        early = head.partition(b"\r\n\r\n")[2]
        websocket_early = websocket.receive_data(early)
        assert websocket_early == b""
        try:
            yield client, websocket
        finally:
            client.sock.close()
        nursery.cancel_scope.cancel()


async def echo(link: WebsocketLink) -> None:
    while data := await link.receive():
        link.send_nowait(data)
        await link.flush()


async def test_bytes_both_ways_and_the_normal_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with connected(echo) as (client, websocket):
        answer = await client.ask(websocket.encode(b"hello"))
        assert websocket.receive_data(answer) == b"hello"
        websocket.close()
        websocket.receive_data(await client.ask(websocket.data_to_send()))
        assert websocket.close_code == 1000
        assert await client.answer() == b""


async def test_the_server_says_why_it_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def fail(link: WebsocketLink) -> None:
        await link.receive()
        await link.aclose(1011, "no such thing")
        link.send_nowait(b"too late")

    async with connected(fail) as (client, websocket):
        websocket.receive_data(await client.ask(websocket.encode(b"x")))
        assert (websocket.close_code, websocket.close_reason) == (1011, "no such thing")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x81\0\0\0\0x", 1003),  # text
        (b"\x82\x01x", 1000),  # no mask: coder/websocket hangs up with 1000
        (b"\xf2\x81\0\0\0\0x", 1002),  # reserved bits
    ],
)
async def test_wrong_frames_end_it(
    frame: bytes, code: int, autojump_clock: trio.testing.MockClock
) -> None:
    reasons: list[str] = []

    async def serve(link: WebsocketLink) -> None:
        try:
            await link.receive()
        except RemoteProtocolError as exc:
            reasons.append(str(exc))
            raise

    async with connected(serve) as (client, websocket):
        websocket.receive_data(await client.ask(frame))
        assert websocket.close_code is not None
        if code != 1000:
            assert websocket.close_code == code
        assert len(reasons) == 1


async def test_half_a_message_and_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with connected(echo) as (client, websocket):
        await client.ask(websocket.encode(b"hello")[:-2])
        client.sock.shutdown(1)
        rest = await client.answer()
        websocket.receive_data(rest)
        assert websocket.close_code == 1000


async def test_who_answers_pings_stays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with connected(echo) as (client, websocket):
        for _ in range(5):
            await trio.sleep(HEARTBEAT_INTERVAL)
            assert websocket.receive_data(await client.answer()) == b""
            pong = websocket.data_to_send()
            assert pong
            assert await client.ask(pong) == b"(silence)"
        assert websocket.receive_data(
            await client.ask(websocket.encode(b"still here"))
        ) == (b"still here")


async def test_who_does_not_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    beats = Heartbeats()
    async with connected(echo, beats) as (client, websocket):
        await trio.sleep(2 * HEARTBEAT_INTERVAL + 1)
        websocket.receive_data(await client.answer())
        assert (websocket.close_code, websocket.close_reason) == (1001, "Ping failed")
        assert await client.answer() == b""
        assert not beats._watched


async def test_all_can_be_closed_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    beats = Heartbeats()
    async with connected(echo, beats) as (client, websocket):
        beats.close_all(1001, "bye")
        websocket.receive_data(await client.answer())
        assert (websocket.close_code, websocket.close_reason) == (1001, "bye")


async def test_a_sender_ends_when_its_client_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended = trio.Event()

    async def tick(link: WebsocketLink) -> None:
        while True:
            await trio.sleep(1)
            link.send_nowait(b"tick")

    async def serve(link: WebsocketLink) -> None:
        await send_only(link, tick)
        ended.set()

    async with connected(serve) as (client, websocket):
        await trio.sleep(1.5)
        assert websocket.receive_data(await client.answer()) == b"tick"
        await client.ask(websocket.encode(b"who cares"))
        websocket.close()
        await client.ask(websocket.data_to_send())
        await ended.wait()


async def test_who_only_sends_hears_of_broken_rules(
    autojump_clock: trio.testing.MockClock,
) -> None:
    faults: list[str] = []

    async def serve(link: WebsocketLink) -> None:
        with pytest.raises(RemoteProtocolError) as info:
            await send_only(link, lambda _: trio.sleep_forever())
        faults.append(str(info.value))

    async with connected(serve) as (client, websocket):
        answer = await client.ask(bytes.fromhex("820100"))
        websocket.receive_data(answer)
        assert websocket.close_code == 1002
    assert len(faults) == 1


@pytest.mark.parametrize(
    ("extra", "status", "text"),
    [
        (b"Origin: https://a.example\r\n", b"101", b""),
        (b"Origin: https://A.EXAMPLE\r\n", b"101", b""),
        (
            b"Origin: https://evil.example\r\n",
            b"403",
            b'request Origin "evil.example" is not authorized for Host "a.example"\n',
        ),
        (
            b"Origin: null\r\n",
            b"403",
            b'request Origin "null" is not a valid URL with a host\n',
        ),
    ],
)
async def test_pages_of_other_sites_get_nothing(
    extra: bytes, status: bytes, text: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async def answer(request: Request) -> Response | Takeover:
        return accept_websocket(request, Heartbeats(), echo)

    async with trio.open_nursery() as nursery:
        client = Client(Front(derp=None, pages=answer), nursery)
        got = await client.ask(ASK + extra + b"\r\n")
        assert got.startswith(b"HTTP/1.1 " + status)
        assert got.endswith(text)
        client.sock.close()


async def test_no_upgrade_is_426(autojump_clock: trio.testing.MockClock) -> None:
    answer = accept_websocket(Request("GET", "/x", "/x"), Heartbeats(), echo)
    assert isinstance(answer, Response)
    assert answer.status == 426
    assert b"WebSocket protocol violation" in answer.body
