"""Pages that wait, and requests that become conversations."""

from __future__ import annotations

import trio.testing

from relay.front.application import Takeover, application
from relay.front.router import HANDSHAKE_TIMEOUT, Front
from relay.front.wire import Wire
from relay.pages.page import Request, Response
from tests.relay.front.test_router import Client


async def test_page_that_never_waits() -> None:
    answer = await application(lambda request: Response(201))(Request("GET", "/", "/"))
    assert answer == Response(201)


async def test_takeover_has_the_rest_and_no_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    seen: list[bytes] = []

    async def talk(wire: Wire, rest: bytes) -> None:
        seen.append(rest)
        await trio.sleep(100 * HANDSHAKE_TIMEOUT)
        await wire.send(b"hello")
        seen.append(await wire.receive())

    async def answer(request: Request) -> Response | Takeover:
        seen.append(request.body)
        await trio.sleep(1)
        return Takeover(talk)

    async with trio.open_nursery() as nursery:
        client = Client(Front(derp=None, pages=answer), nursery)
        assert (
            await client.ask(
                b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbodyrest"
            )
            == b"(silence)"
        )
        await trio.sleep(100 * HANDSHAKE_TIMEOUT + 1)
        assert await client.answer() == b"hello"
        await client.ask(b"more")
        assert seen == [b"body", b"rest", b"more"]
        assert await client.answer() == b""
        client.sock.close()


async def test_a_page_that_takes_too_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def answer(request: Request) -> Response | Takeover:
        await trio.sleep_forever()
        raise AssertionError

    async with trio.open_nursery() as nursery:
        client = Client(Front(derp=None, pages=answer), nursery)
        client.sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await client.time_until_closed() == HANDSHAKE_TIMEOUT
