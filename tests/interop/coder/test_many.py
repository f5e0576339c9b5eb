"""Twenty real agents and fifty real clients: a crowd in which things happen.

Clients go without a word, agents start again, and so does the server, once in
order and once not. Whoever is left, and whoever comes, has to reach its agent.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import trio

from relay.store.database import READERS
from tests.interop.coder.inside import Inside, Usage, open_inside
from tests.interop.coder.peers import AgentProgram, JsonLines, open_agent, open_client
from tests.interop.coder.servers import Server, ServerKind, open_server
from tests.interop.network import RELAY, Network
from tests.interop.programs import POLL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

AGENTS: Final = 20
CLIENTS: Final = 50
ECHO_PORTS: Final = 20_000  # an agent that starts again has the same port
AT_ONCE: Final = 6  # programs that start; the machine is small
PATIENCE: Final = 45.0  # seconds; clients' back-off alone is up to 10

# Websockets are pinged each 15 s, and the answer may take as long.
SILENCE: Final = 35.0

# Descriptors of SQLite connections that are opened when they are needed.
DATABASE: Final = 3 * (READERS + 1)

MIB: Final = 1 << 20
# Of the server's memory: for a peer that is here, and left behind of them all.
# Buffers of the allocator, mostly: they do not grow with what happens.
PEER_COST: Final = MIB // 4
LEFT_BEHIND: Final = 30 * MIB


@dataclass(slots=True)
class Crowd:
    """A server with its agents and clients, all in programs of their own."""

    kind: ServerKind
    network: Network
    folder: Path
    stack: AsyncExitStack
    agents: dict[int, AgentProgram] = field(default_factory=dict)
    clients: dict[int, JsonLines] = field(default_factory=dict)
    server: Server = field(init=False)

    async def start_server(self) -> None:
        """The same one each time: its folder and its port stay."""
        self.server = await self.stack.enter_async_context(
            open_server(
                self.kind,
                self.folder / "server",
                host=RELAY,
                port=8080,
                agents=AGENTS,
                wrapper=self.network.enter(self.network.r),
            )
        )

    async def start_agents(self, numbers: Iterable[int]) -> None:
        await self._start_all(self._start_agent, numbers)

    async def _start_agent(self, number: int) -> None:
        # Each start in a folder of its own: lines of the last one would count.
        began = f"agent-{number}-{number in self.agents}"
        self.agents[number] = await self.stack.enter_async_context(
            open_agent(
                *(self.server, self.folder / began),
                *("--echo", f"127.0.0.1:{ECHO_PORTS + number}"),
                number=number,
                wrapper=self.network.enter(self.network.a),
                timeout=PATIENCE,
            )
        )

    async def start_clients(self, numbers: Iterable[int]) -> None:
        await self._start_all(self._start_client, numbers)

    async def _start_client(self, number: int) -> None:
        agent = number % AGENTS
        client = await self.stack.enter_async_context(
            open_client(
                *(self.server, self.agents[agent], self.folder / f"client-{number}"),
                *("--stay", "--wait", f"{PATIENCE:g}s", "--echo-bytes", "10000"),
                # Half of them through the relay, for ever.
                *(["--block-endpoints"] if number % 2 else []),
                number=agent,
                wrapper=self.network.enter(self.network.b),
            )
        )
        await client.wait_line(
            lambda line: line.get("event") == "staying", "staying", timeout=PATIENCE
        )
        self.clients[number] = client

    @staticmethod
    async def _start_all(
        start: Callable[[int], Awaitable[None]], numbers: Iterable[int]
    ) -> None:
        limit = trio.CapacityLimiter(AT_ONCE)

        async def run(number: int) -> None:
            async with limit:
                await start(number)

        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(run, number)

    async def kill_clients(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            await self.clients.pop(number).program.kill()

    async def everybody_reaches(self) -> None:
        """Each client has bytes echoed by its agent, all at the same time."""
        async with trio.open_nursery() as nursery:
            for client in self.clients.values():
                nursery.start_soon(self._reaches, client)

    async def _reaches(self, client: JsonLines) -> None:
        def reached() -> int:
            return sum(line.get("event") == "reached" for line in client.lines())

        before = reached()
        client.program.process.send_signal(signal.SIGUSR1)
        await client.wait_line(
            lambda _: reached() > before, "its agent", timeout=PATIENCE + 5
        )

    def usage(self) -> Usage:
        """What the server's process holds."""
        return Usage.of(self.server.program.process.pid)

    async def sockets_come_down_to(self, idle: Usage) -> Usage:
        """Wait for it; fails if some stay open."""
        with trio.move_on_after(10):
            while self.usage().sockets > idle.sockets:
                await trio.sleep(POLL)
        after = self.usage()
        assert after.sockets == idle.sockets
        assert after.descriptors <= idle.descriptors + DATABASE
        return after

    async def leave(self) -> None:
        """All clients and agents end in order."""
        async with trio.open_nursery() as nursery:
            for program in (*self.clients.values(), *self.agents.values()):
                nursery.start_soon(program.program.stop)


async def test_everybody_finds_their_agent(
    kind: ServerKind, network: Network, tmp_path: Path
) -> None:
    with trio.fail_after(200):
        async with AsyncExitStack() as stack:
            crowd = Crowd(kind, network, tmp_path, stack)
            await crowd.start_server()
            idle = crowd.usage()
            await crowd.start_agents(range(AGENTS))
            await crowd.start_clients(range(CLIENTS))
            await crowd.everybody_reaches()

            # Clients and agents go while the server does, which says so.
            await crowd.kill_clients(range(10))
            for number in range(0, AGENTS, 4):
                await crowd.agents[number].program.kill()
            await crowd.server.program.stop()
            await crowd.start_server()
            await crowd.start_agents(range(0, AGENTS, 4))
            await crowd.start_clients(range(CLIENTS, CLIENTS + 10))
            await crowd.everybody_reaches()

            # Clients and agents go while the server is away without a word.
            await crowd.server.program.kill()
            await crowd.kill_clients(range(10, 15))
            for number in (1, 2):
                await crowd.agents[number].program.kill()
            await crowd.start_server()
            await crowd.start_agents((1, 2))
            await crowd.start_clients(range(CLIENTS + 10, CLIENTS + 15))
            await crowd.everybody_reaches()
            assert len(crowd.clients) == CLIENTS
            await crowd.leave()
            if kind is ServerKind.OURS:
                # Of this server no more than of the first before they came.
                await crowd.sockets_come_down_to(idle)


async def test_nothing_stays_of_those_who_went(
    network: Network, tmp_path: Path
) -> None:
    """Sockets, peers and memory of a server of ours."""
    with trio.fail_after(200):
        async with AsyncExitStack() as stack:
            crowd = Crowd(ServerKind.OURS, network, tmp_path, stack)
            await crowd.start_server()
            inside = await open_inside(
                crowd.server, tmp_path / "inside", wrapper=network.enter(network.r)
            )
            assert await inside.peers() == set()
            idle = crowd.usage()
            await crowd.start_agents(range(AGENTS))
            agents = {agent.id for agent in crowd.server.agents}
            await crowd.start_clients(range(CLIENTS))
            busy = crowd.usage()
            present = await inside.peers()
            assert len(present - agents) == CLIENTS
            assert agents < present
            assert busy.memory - idle.memory < (AGENTS + CLIENTS) * PEER_COST

            # The kernel says good-bye for those who were killed, and nobody
            # does for those who were stopped.
            await crowd.kill_clients(range(20))
            stopped = [crowd.clients.pop(number).program for number in range(20, 25)]
            for program in stopped:
                program.process.send_signal(signal.SIGSTOP)
            await crowd.start_clients(range(CLIENTS, CLIENTS + 5))
            await only_these_remain(inside, agents, len(crowd.clients))
            await crowd.everybody_reaches()
            # Those may return for 15 minutes.
            assert len(await inside.peers("lost")) == 25

            # A relay drops who does not read only when there is too much for
            # them to read, as derper does.
            for program in stopped:
                await program.kill()
            await crowd.leave()
            after = await crowd.sockets_come_down_to(idle)
            assert after.memory - idle.memory < LEFT_BEHIND
            assert await inside.peers() == set()
            assert not (await inside.coordinator())["tunnels"]


async def only_these_remain(inside: Inside, agents: set[str], clients: int) -> None:
    """Wait until the agents and so many clients are there, and nobody else."""
    with trio.move_on_after(SILENCE):
        while len(await inside.peers() - agents) != clients:
            await trio.sleep(0.5)
    present = await inside.peers()
    assert agents <= present
    assert len(present - agents) == clients
