"""Who is served what, and how long those get who never ask."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

import pytest
import trio
import trio.testing

from relay.derp.pure_switch import PureSwitch
from relay.derp.session import DerpService
from relay.front.router import HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Front
from relay.pages.page import Request, Response
from tailnet.derp.frames import FRAME_HEADER, FrameType
from tailnet.keys import NodePrivate
from tests.doubles import TlsClient, server_context

RELAY = NodePrivate(bytes([7]) * 32)
GET = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = b"GET /derp HTTP/1.1\r\nHost: a\r\nUpgrade: DERP\r\n\r\n"
WEBSOCKET = (
    b"GET /derp HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: derp\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def page(request: Request) -> Response:
    if request.path == "/bug":
        raise ZeroDivisionError("a bug in a page")
    return Response(200, body=f"{request.method} {request.path}".encode())


def make(*, tls: bool = False, derp: bool = True) -> Front:
    return Front(
        derp=DerpService(RELAY, PureSwitch()) if derp else None,
        pages=page,
        tls_context=server_context if tls else None,
    )


class Client:
    """A connection to a front, served in a nursery."""

    def __init__(self, front: Front, nursery: trio.Nursery) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sock = socket.create_connection(listener.getsockname(), timeout=5)
            near, _ = listener.accept()
        near.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nursery.start_soon(front.serve, near)

    async def ask(self, data: bytes) -> bytes:
        """Send, and return what comes without waiting."""
        self.sock.sendall(data)
        return await self.answer()

    async def answer(self) -> bytes:
        await trio.testing.wait_all_tasks_blocked()
        self.sock.setblocking(False)
        try:
            return self.sock.recv(1 << 16)
        except BlockingIOError:
            return b"(silence)"
        finally:
            self.sock.settimeout(5)

    async def time_until_closed(self, drip: Callable[[], bytes] | None = None) -> float:
        """Seconds until the front hangs up, while bytes drip every second."""
        started = trio.current_time()
        while True:
            try:
                if drip is not None and (data := drip()):
                    self.sock.sendall(data)
                if await self.answer() == b"":
                    break
            except ConnectionError:
                break
            await trio.sleep(1)
        self.sock.close()
        return trio.current_time() - started


async def test_pages_and_keep_alive(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(make(), nursery)
        for _ in range(3):
            answer = await client.ask(GET)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\nGET /page")
        both = await client.ask(GET + GET)
        while both.count(b"GET /page") < 2:
            both += await client.answer()
        assert await client.time_until_closed() == IDLE_TIMEOUT


async def test_close_is_honoured(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(make(), nursery)
        answer = await client.ask(
            GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        assert b"\r\nConnection: close\r\n" in answer
        assert await client.answer() == b""
        client.sock.close()


async def test_upgrades(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        front = make()
        for request, first in (
            (UPGRADE, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n"),
            (UPGRADE.replace(b"GET", b"POST"), b"HTTP/1.1 101 "),
            (UPGRADE.replace(b"DERP", b"websocket"), b"HTTP/1.1 101 "),
            (
                UPGRADE.replace(b"\r\n\r\n", b"\r\nDerp-Fast-Start: 1\r\n\r\n"),
                b"\1\0\0\0",
            ),
            (WEBSOCKET, b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"),
        ):
            client = Client(front, nursery)
            assert (await client.ask(request)).startswith(first)
            client.sock.close()
        assert front.derp is not None
        assert front.derp.statistics.started == 5
        assert front.derp.statistics.fast_starts == 1
        assert front.derp.statistics.websockets == 1


async def test_without_derp_upgrades_are_pages(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(make(derp=False), nursery)
        assert (await client.ask(UPGRADE)).endswith(b"GET /derp")
        client.sock.close()


async def test_refused_websocket_keeps_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(make(), nursery)
        answer = await client.ask(WEBSOCKET.replace(b"Version: 13", b"Version: 12"))
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert (await client.ask(GET)).endswith(b"GET /page")
        client.sock.close()


async def test_another_subprotocol_is_closed_with_a_word(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(make(), nursery)
        answer = await client.ask(WEBSOCKET.replace(b"l: derp", b"l: xderp"))
        head, _, rest = answer.partition(b"\r\n\r\n")
        rest = rest or await client.answer()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert rest[2:4] == (1008).to_bytes(2, "big")
        assert b"client must speak the derp subprotocol" in rest
        client.sock.close()


async def test_http_on_the_tls_port(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        front = make(tls=True)
        client = Client(front, nursery)
        answer = await client.ask(GET)
        assert b"Client sent an HTTP request to an HTTPS server." in answer
        assert front.statistics.tls_failures == 1
        client.sock.close()


async def test_pages_over_tls_are_counted_by_version(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        front = make(tls=True)
        client, tls = Client(front, nursery), TlsClient(ssl.TLSVersion.TLSv1_2)
        data = tls.handshake()
        while data:
            data = tls.handshake(await client.ask(data))
        answer = tls.decode(await client.ask(tls.encode(GET)))
        assert answer.endswith(b"GET /page")
        assert front.statistics.requests_by_tls == {"TLSv1.2": 1}
        client.sock.close()


async def test_bug_in_a_page_ends_one_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        front = make()
        unlucky, other = Client(front, nursery), Client(front, nursery)
        assert await unlucky.ask(GET.replace(b"page", b"bug")) == b""
        assert (await other.ask(GET)).endswith(b"GET /page")
        unlucky.sock.close()
        other.sock.close()


DRIPS = {
    "silence": (False, b"", b""),
    "TLS silence": (True, b"", b""),
    "TLS drip": (True, b"", b"\x16\x03\x01\x02\x00\x01"),
    "head drip": (False, b"", UPGRADE[:60]),
    "body drip": (
        False,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n",
        b"x" * 60,
    ),
    "DERP silence": (False, UPGRADE, b""),
    "DERP drip": (
        False,
        UPGRADE + FRAME_HEADER.pack(FrameType.CLIENT_INFO, 200),
        b"x" * 60,
    ),
    "websocket silence": (False, WEBSOCKET, b""),
    "websocket drip": (False, WEBSOCKET + b"\x82\xfe\x00\xc8", b"x" * 60),
    "websocket pings": (False, WEBSOCKET, b"\x89\x80\0\0\0\0" * 20),
}


@pytest.mark.parametrize("name", DRIPS)
async def test_ten_seconds_from_accept_to_adoption(
    autojump_clock: trio.testing.MockClock, name: str
) -> None:
    tls, first, drip = DRIPS[name]
    left = iter(drip)
    async with trio.open_nursery() as nursery:
        front = make(tls=tls)
        slow = Client(front, nursery)
        if first:
            await slow.ask(first)
        took = await slow.time_until_closed(
            lambda: bytes([next(left, 0)]) if drip else b""
        )
        assert took == HANDSHAKE_TIMEOUT


@pytest.mark.parametrize("name", [n for n, (tls, _, _) in DRIPS.items() if not tls])
async def test_slow_clients_delay_nobody(
    autojump_clock: trio.testing.MockClock, name: str
) -> None:
    _, first, drip = DRIPS[name]
    async with trio.open_nursery() as nursery:
        front = make()
        slow = [Client(front, nursery) for _ in range(20)]
        for client in slow:
            client.sock.sendall((first + drip[:1]) or b"G")
        started = trio.current_time()
        quick = Client(front, nursery)
        assert (await quick.ask(GET)).endswith(b"GET /page")
        assert trio.current_time() == started
        for client in (*slow, quick):
            client.sock.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_garbage_ends_at_once(
    autojump_clock: trio.testing.MockClock, tls: bool
) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(make(tls=tls), nursery)
        await client.ask(b"\0\1\2garbage\r\n\r\n" * 9)
        assert await client.time_until_closed() <= 1


async def test_headers_of_websockets(autojump_clock: trio.testing.MockClock) -> None:
    """A server may say more in the answers that are not its pages'."""
    async with trio.open_nursery() as nursery:
        front = make()
        front.headers = (("X-Server", "1"),)
        for request, expected in (
            (WEBSOCKET, True),
            (WEBSOCKET.replace(b"13", b"12"), True),
            (UPGRADE, False),  # answered past the HTTP server
        ):
            client = Client(front, nursery)
            answer = await client.ask(request)
            assert (b"\r\nX-Server: 1\r\n" in answer) == expected
            client.sock.close()
        nursery.cancel_scope.cancel()
