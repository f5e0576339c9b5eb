"""How ports start and stop."""

from __future__ import annotations

import socket

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
