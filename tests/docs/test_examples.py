"""The programs in the how-tos run, as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import trio

from relay.serve_settings import load_serve_settings
from relay.server import Server, open_server
from tailnet.sdk.access import Access
from tailnet.sdk.controller import open_control
from tests.interop.coder.nodes import make_node
from tests.interop.programs import clean_environment
from tests.modules import ROOT

HOWTO = ROOT / "docs" / "howto"


def examples(name: str) -> list[str]:
    """The Python programs of a how-to."""
    text = (HOWTO / name).read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [str(program) for program in found]


def environment(folder: Path, **more: str) -> dict[str, str]:
    return clean_environment(folder, PYTHONPATH=str(ROOT), **more)


async def output_of(program: str, env: Mapping[str, str]) -> list[str]:
    """Run a program to its end; its lines."""
    done = await trio.run_process(
        [sys.executable, "-W", "error", "-c", program],
        env=env,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


@dataclass(slots=True)
class World:
    """A server with alice's workspace in it.

    Attributes:
        server: Runs.
        env: For programs of alice.
        folder: Empty.
    """

    server: Server
    env: dict[str, str]
    folder: Path

    async def add_agent(self, name: str) -> tuple[str, str]:
        """Make an agent of alice's; its id and token."""
        store = self.server.context.store
        workspace = await store.find_workspace("alice", "dev")
        assert workspace is not None
        new = await store.create_agent(workspace.id, name)
        return str(new.agent.id), str(new.token)


class Lines:
    """The lines of a stream."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._data = b""

    async def next(self) -> str:
        """Wait for the next one."""
        while b"\n" not in self._data:
            more = await self._stream.receive_some()
            assert more, "the program has ended"
            self._data += more
        line, _, self._data = self._data.partition(b"\n")
        return line.decode()


@asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    arguments = {"http-address": "127.0.0.1:0", "data-dir": str(folder / "data")}
    with trio.fail_after(60):
        async with open_server(load_serve_settings(arguments, {})) as server:
            store = server.context.store
            alice = await store.create_user("alice")
            key = await store.create_api_key(alice.id)
            await store.create_workspace(alice.id, "dev")
            env = environment(
                folder,
                TAILNET_URL=server.access_url,
                TAILNET_SESSION_TOKEN=key.token,
            )
            yield World(server, env, folder)


async def test_embedded_server(tmp_path: Path) -> None:
    [program] = examples("embed-a-server.md")
    with trio.fail_after(60):
        lines = await output_of(program, environment(tmp_path))
    told = [line for line in lines if line.startswith(("alice", "and", "bob", "eve"))]
    assert [line.split()[0] for line in told] == ["alice's", "and", "bob", "eve"]
    assert told[2] == "bob is connected; relays: 999"
    assert told[3] == (
        "eve is refused: Agent doesn't exist with that id, or you do not have access "
        "to it. (status 404)"
    )


async def test_following_peers(tmp_path: Path) -> None:
    program, _ = examples("use-the-sdk.md")
    async with open_world(tmp_path) as world, trio.open_nursery() as nursery:
        agent_id, token = await world.add_agent("main")
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-u", "-W", "error", "-c", program],
                env=world.env,
                stdout=subprocess.PIPE,
                check=False,
            )
        )
        assert process.stdout is not None
        lines = Lines(process.stdout)
        assert await lines.next() == "direct paths: allowed"
        told = {await lines.next() for _ in range(3)}
        assert told == {
            "relay: Coder Embedded Relay",
            "workspace: dev RUNNING",
            "agent: main",
        }
        access = Access.parse(world.server.access_url, token)
        path = "/api/v2/workspaceagents/me/rpc"
        async with open_control(access, path, version="2.11") as agent:
            agent.update_node(make_node(UUID(agent_id)))
            assert await lines.next() == f"peer: {agent_id} NODE"
            assert await lines.next() == "its home: 999"
        assert await lines.next() == f"peer: {agent_id} DISCONNECTED"
        await world.add_agent("second")
        assert await lines.next() == "agent: second"
        process.terminate()


@asynccontextmanager
async def open_proxy(requests: list[bytes]) -> AsyncIterator[str]:
    """A proxy on loopback that does CONNECT, and writes down what for."""

    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def serve(client: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await client.receive_some()
        requests.append(head)
        host, port = head.split()[1].decode().rsplit(":", 1)
        await client.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        async with (
            await trio.open_tcp_stream(host, int(port)) as upstream,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(pump, client, upstream)
            nursery.start_soon(pump, upstream, client)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(
            partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
        )
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_packet_through_proxy_and_relay(tmp_path: Path) -> None:
    _, program = examples("use-the-sdk.md")
    requests: list[bytes] = []
    async with open_world(tmp_path) as world, open_proxy(requests) as proxy:
        lines = await output_of(program, {**world.env, "RELAY_PROXY": proxy})
        assert lines == [f"proxy: {proxy} websocket: True", "received: hello True"]
        port = world.server.addresses["http"][1]
        [head] = requests
        assert head.startswith(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % port)
        derp = world.server.derp
        assert derp is not None
        assert (derp.statistics.admitted, derp.statistics.websockets) == (2, 1)


def test_every_program_is_run_here() -> None:
    """A how-to with another program needs another test."""
    programs = {path.name: len(examples(path.name)) for path in HOWTO.glob("*.md")}
    assert {name: count for name, count in programs.items() if count} == {
        "embed-a-server.md": 1,
        "use-the-sdk.md": 2,
    }
