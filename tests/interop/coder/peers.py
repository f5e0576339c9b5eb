"""Real agents and clients, run and listened to."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tests.interop.coder.servers import ROOT, Json, Server
from tests.interop.programs import (
    POLL,
    Program,
    clean_environment,
    open_program,
    run_program,
)
from tests.interop.tools import find_coder_program

__all__ = (
    "AgentProgram",
    "Front",
    "JsonLines",
    "open_agent",
    "open_client",
    "open_front",
    "report_of",
    "run_client",
    "run_rpc",
)

CLIENT_TIMEOUT: Final = 60.0  # seconds


@dataclass(slots=True)
class JsonLines:
    """A program that writes a JSON object a line into a file."""

    program: Program
    file: Path

    def lines(self) -> list[Json]:
        """All lines so far. A line that is only half there is not one yet."""
        whole, _, _ = self.file.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line[:1] == "{"]

    async def wait_line(
        self, wanted: Callable[[Json], bool], what: str, *, timeout: float = 15
    ) -> Json:
        """Wait for a line that ``wanted`` accepts.

        Args:
            wanted: Is asked about each line, old ones too.
            what: For the error message.
            timeout: Seconds.

        Raises:
            ProgramError: The program ended without it, or time is up.
        """
        with trio.move_on_after(timeout):
            while True:
                ended = self.program.process.poll() is not None
                for line in self.lines():
                    if wanted(line):
                        return line
                if ended:
                    raise self.program.error(f"ended before {what}")
                await trio.sleep(POLL)
        raise self.program.error(f"did not come to {what} within {timeout} s")


@dataclass(slots=True)
class AgentProgram(JsonLines):
    """Coder's agent.

    Attributes:
        echo: Port of the echo beside it.
        sink: Port of the sink beside it.
    """

    echo: int = 0
    sink: int = 0

    def events(self, name: str) -> list[Json]:
        """What it said of one kind."""
        return [line for line in self.lines() if line["event"] == name]

    async def wait_event(
        self, name: str, count: int = 1, *, timeout: float = 15
    ) -> Json:
        """Wait for the ``count``-th event of one kind; returns that."""
        await self.wait_line(
            lambda _: len(self.events(name)) >= count,
            f"{name} for the {count}. time",
            timeout=timeout,
        )
        return self.events(name)[count - 1]


@contextlib.asynccontextmanager
async def open_agent(
    server: Server,
    folder: Path,
    *,
    number: int = 0,
    wrapper: Sequence[str | Path] = (),
) -> AsyncIterator[AgentProgram]:
    """Run Coder's agent while the block runs; it is ready when that begins.

    Args:
        server: Whose agent.
        folder: For its files.
        number: Which of the server's agents.
        wrapper: A command that runs it, such as ``ip netns exec``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "agent.jsonl"
    async with open_program(
        *wrapper,
        find_coder_program("coderagent"),
        *("--url", server.url),
        *("--token", server.agents[number].token),
        *("--dir", folder),
        log_file=folder / "agent.log",
        stdout=output,
        env=server.environment(folder / "home"),
        name="coderagent",
    ) as program:
        agent = AgentProgram(program, output)
        start = await agent.wait_event("start")
        agent.echo, agent.sink = start["echo"], start["sink"]
        await agent.wait_event("ready")
        yield agent


@contextlib.asynccontextmanager
async def open_client(
    server: Server,
    agent: AgentProgram,
    folder: Path,
    *flags: str,
    number: int = 0,
    wrapper: Sequence[str | Path] = (),
) -> AsyncIterator[JsonLines]:
    """Run Coder's client of one agent while the block runs.

    Args:
        server: Whose agent.
        agent: Has what the client talks to.
        folder: For its output.
        flags: See ``tests/peers/coder/coderclient``.
        number: Which of the server's agents.
        wrapper: A command that runs it, such as ``ip netns exec``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{len(list(folder.iterdir()))}.jsonl"
    async with open_program(
        *wrapper,
        find_coder_program("coderclient"),
        *("--url", server.url),
        *("--token", server.owner.token),
        *("--agent", server.agents[number].id),
        *("--port", str(agent.echo)),
        *("--sink-port", str(agent.sink)),
        *flags,
        log_file=folder / "client.log",
        stdout=output,
        env=server.environment(folder.parent / "home"),
        name="coderclient",
    ) as program:
        yield JsonLines(program, output)


async def report_of(client: JsonLines, *, timeout: float = CLIENT_TIMEOUT) -> Json:
    """Wait for a client to end, and return its report.

    Raises:
        ProgramError: It still runs after ``timeout`` seconds.
    """
    status = await client.program.wait(timeout=timeout)
    report = client.lines()[-1]
    assert report["ok"] == (status == 0)
    return report


async def run_client(
    server: Server,
    agent: AgentProgram,
    folder: Path,
    *flags: str,
    wrapper: Sequence[str | Path] = (),
) -> Json:
    """Run Coder's client of one agent to its end, and return its report."""
    async with open_client(server, agent, folder, *flags, wrapper=wrapper) as client:
        return await report_of(client)


async def run_rpc(
    server: Server,
    folder: Path,
    *flags: str,
    steps: Sequence[Json] = (),
    wrapper: Sequence[str | Path] = (),
    timeout: float = CLIENT_TIMEOUT,
) -> list[Json]:
    """Take steps of the Tailnet API, and return what came back.

    See ``tests/peers/coder/coderrpc`` for the steps and the lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / f"{len(list(folder.iterdir()))}.steps"
    script.write_text("".join(json.dumps(step) + "\n" for step in steps))
    done = await run_program(
        *wrapper,
        find_coder_program("coderrpc"),
        *("--url", server.url),
        *flags,
        folder=folder,
        timeout=timeout,
        stdin=script,
        env=server.environment(folder.parent / "home"),
        name="coderrpc",
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@dataclass(slots=True)
class Front:
    """The proxy of ``front.py``; its log is what it saw."""

    program: Program

    def requests(self, path: str, *, peer: str | None = None) -> list[Json]:
        """Requests for ``path``, from one address if that is given."""
        lines: list[Json] = [
            json.loads(line)
            for line in self.program.log.splitlines()
            if line.startswith("{")
        ]
        return [
            line
            for line in lines
            if line.get("path") == path and peer in (None, line.get("peer"))
        ]


@contextlib.asynccontextmanager
async def open_front(
    folder: Path,
    *,
    listen: str,
    server: str,
    refuse_derp: bool = False,
    wrapper: Sequence[str | Path] = (),
) -> AsyncIterator[Front]:
    """Run the proxy while the block runs.

    Args:
        folder: For its log.
        listen: Address and port.
        server: Address and port of the server.
        refuse_derp: Answer raw DERP upgrades with 426.
        wrapper: A command that runs it, such as ``ip netns exec``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    async with open_program(
        *wrapper,
        *(sys.executable, "-m", "tests.interop.coder.front"),
        *("--listen", listen, "--server", server),
        *(["--refuse-derp"] if refuse_derp else []),
        log_file=folder / "front.log",
        env=clean_environment(folder / "home", PYTHONPATH=str(ROOT)),
        cwd=ROOT,
        name="front",
    ) as program:
        await program.wait_log('"ready": true')
        yield Front(program)
