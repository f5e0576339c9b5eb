"""How ports start and stop."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from relay.derp.pure_switch import PureSwitch
from relay.front.application import Takeover
from relay.front.router import Front
from relay.front.wire import Wire
from relay.pages.page import Request, Response
from relay.ports import Port, open_ports


async def test_a_stop_in_its_order(autojump_clock: trio.testing.MockClock) -> None:
    seen: list[str] = []
    told_to_stop = trio.Event()

    async def talk(wire: Wire, rest: bytes) -> None:
        seen.append("session")
        await told_to_stop.wait()
        await trio.sleep(3)
        seen.append("session is over")

    async def answer(request: Request) -> Response | Takeover:
        return Takeover(talk)

    async def service() -> None:
        try:
            await trio.sleep_forever()
        finally:
            seen.append("service is over")

    def stop() -> None:
        seen.append("stop")
        told_to_stop.set()

    started = trio.current_time()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = Port(listener, Front(derp=None, pages=answer))
        async with open_ports([port], PureSwitch(), 5, stop) as services:
            services.start_soon(service)
            client = socket.create_connection(listener.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            while not seen:
                await trio.testing.wait_all_tasks_blocked()
    assert seen == ["session", "stop", "session is over", "service is over"]
    assert trio.current_time() - started == 3
    client.close()


async def test_sessions_that_do_not_end_are_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    entered = trio.Event()

    async def talk(wire: Wire, rest: bytes) -> None:
        entered.set()
        await trio.sleep_forever()

    async def answer(request: Request) -> Response | Takeover:
        return Takeover(talk)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = Port(listener, Front(derp=None, pages=answer))
        async with open_ports([port], PureSwitch(), 5, lambda: None):
            client = socket.create_connection(listener.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await entered.wait()
            left = trio.current_time()
    assert trio.current_time() - left == 5
    client.close()


async def test_who_is_between_two_requests_holds_nothing_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def answer(request: Request) -> Response:
        await trio.sleep(1)
        return Response(200)

    get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        front = Front(derp=None, pages=answer)
        async with open_ports([Port(listener, front)], PureSwitch(), 60, lambda: None):
            silent, between, asking, half = (
                socket.create_connection(listener.getsockname()) for _ in range(4)
            )
            between.sendall(get)
            await trio.sleep(2)
            assert between.recv(12) == b"HTTP/1.1 200"
            asking.sendall(get)
            half.sendall(get[:-2])
            await trio.testing.wait_all_tasks_blocked()
            left = trio.current_time()
            half.sendall(get[-2:])
        assert trio.current_time() - left <= 1
        for client in asking, half:
            assert b"\r\nConnection: close\r\n" in client.recv(1000)
            assert client.recv(1) == b""
    for client in silent, between, asking, half:
        client.close()


async def test_an_error_in_the_body_ends_all_at_once_and_is_not_wrapped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    entered = trio.Event()

    async def talk(wire: Wire, rest: bytes) -> None:
        entered.set()
        await trio.sleep_forever()

    async def answer(request: Request) -> Response | Takeover:
        return Takeover(talk)

    def stop() -> None:
        raise AssertionError("there is nothing graceful about it")

    async def serve(port: Port) -> None:
        async with open_ports([port], PureSwitch(), 5, stop):
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await entered.wait()
            raise ZeroDivisionError

    started = trio.current_time()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        client = socket.create_connection(listener.getsockname())
        with pytest.raises(ZeroDivisionError):
            await serve(Port(listener, Front(derp=None, pages=answer)))
    assert trio.current_time() == started
    client.close()
