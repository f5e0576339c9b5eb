"""A server that real Coder agents and clients use: ours, or the reference.

The reference is Coder's own coordinator and relay (``tests/peers/coder``).
Each scenario runs against both: against ours to see that it works, against
the reference to see that it asks nothing that Coder's own code does not give.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from tests.interop.programs import (
    Program,
    clean_environment,
    open_program,
    run_program,
)
from tests.interop.tools import find_coder_program

__all__ = ("Agent", "Json", "Server", "ServerKind", "User", "open_server")

Json: TypeAlias = dict[str, Any]

ROOT: Final = Path(__file__).resolve().parents[3]
START_TIMEOUT: Final = 30.0  # seconds; the machine may be busy
WORKSPACE: Final = "ws1"


class ServerKind(enum.Enum):
    OURS = "tailnet serve"
    REFERENCE = "coderserver"


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with an API key."""

    id: str
    username: str
    token: str


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent of a workspace."""

    id: str
    token: str
    workspace: str


@dataclass(slots=True)
class Server:
    """A server that runs.

    Attributes:
        kind: Whose.
        program: Its process and log.
        url: Where agents and clients reach it.
        owner: The user who owns the workspaces.
        stranger: A user who owns nothing.
        agents: One for each workspace.
    """

    kind: ServerKind
    program: Program
    url: str
    owner: User
    stranger: User
    agents: tuple[Agent, ...]

    @property
    def agent(self) -> Agent:
        """The first agent; most scenarios need one."""
        return self.agents[0]


@contextlib.asynccontextmanager
async def open_server(
    kind: ServerKind,
    folder: Path,
    *,
    host: str,
    port: int,
    access_url: str | None = None,
    block_direct: bool = False,
    force_websockets: bool = False,
    agents: int = 1,
    wrapper: Sequence[str | Path] = (),
) -> AsyncIterator[Server]:
    """Run a server while the block runs.

    Args:
        kind: Whose.
        folder: All it keeps. A server in the same folder is the same one
            again: it knows the same users and agents.
        host: IP address to listen on.
        port: TCP port.
        access_url: Where others reach it; None for where it listens.
        block_direct: It tells everybody to have no direct paths.
        force_websockets: It tells everybody to use DERP over websockets.
        agents: Number of workspaces, each with one agent.
        wrapper: A command that runs it, such as ``ip netns exec``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    url = access_url or f"http://{host}:{port}"
    if kind is ServerKind.REFERENCE:
        opened = _open_reference(
            folder,
            *("--listen", f"{host}:{port}"),
            *("--access-url", url),
            *("--agents", str(agents)),
            *(["--block-direct"] if block_direct else []),
            *(["--force-websockets"] if force_websockets else []),
            wrapper=wrapper,
        )
    else:
        opened = _open_ours(
            folder,
            *("--http-address", f"{host}:{port}"),
            *("--access-url", url),
            *(["--block-direct-connections"] if block_direct else []),
            *(["--derp-force-websockets"] if force_websockets else []),
            agents=agents,
            wrapper=wrapper,
        )
    async with opened as (program, owner, stranger, its_agents):
        yield Server(kind, program, url, owner, stranger, its_agents)


@contextlib.asynccontextmanager
async def _open_reference(
    folder: Path, *flags: str, wrapper: Sequence[str | Path]
) -> AsyncIterator[tuple[Program, User, User, tuple[Agent, ...]]]:
    output = folder / "reference.jsonl"
    async with open_program(
        *wrapper,
        find_coder_program("coderserver"),
        *flags,
        log_file=folder / "reference.log",
        stdout=output,
        env=clean_environment(folder / "home"),
        name="coderserver",
    ) as program:
        await program.wait_output(output, r'"event":"ready"', timeout=START_TIMEOUT)
        ready: Json = json.loads(output.read_text().splitlines()[0])
        inventory: Json = ready["inventory"]
        owner, stranger = (
            User(user["id"], user["username"], user["token"])
            for user in inventory["users"]
        )
        agents = tuple(
            Agent(agent["id"], agent["token"], workspace["name"])
            for workspace in inventory["workspaces"]
            for agent in workspace["agents"]
        )
        yield program, owner, stranger, agents


@contextlib.asynccontextmanager
async def _open_ours(
    folder: Path, *flags: str, agents: int, wrapper: Sequence[str | Path]
) -> AsyncIterator[tuple[Program, User, User, tuple[Agent, ...]]]:
    data = folder / "data"
    async with open_program(
        *wrapper,
        *(sys.executable, "-m", "tailnet.cli.main", "serve"),
        *flags,
        *("--data-dir", data),
        log_file=folder / "serve.log",
        env=_our_environment(folder),
        cwd=ROOT,
        name="tailnet serve",
    ) as program:
        await program.wait_log(r"\bready\b", timeout=START_TIMEOUT)
        operator = _Operator(folder, data)
        yield (
            program,
            await operator.user("owner"),
            await operator.user("stranger"),
            tuple(
                [await operator.agent(f"ws{number}") for number in range(1, agents + 1)]
            ),
        )


@dataclass(slots=True)
class _Operator:
    """Makes users, workspaces and agents with the ``tailnet`` command.

    What it made is kept in the folder: tokens are told once.
    """

    folder: Path
    data: Path

    async def user(self, name: str) -> User:
        made = await self.make(f"user-{name}", "user", "create", name)
        return User(made["id"], made["username"], made["token"])

    async def agent(self, workspace: str) -> Agent:
        await self.make(
            f"workspace-{workspace}",
            *("workspace", "create", workspace, "--owner", "owner"),
        )
        made = await self.make(
            f"agent-{workspace}",
            *("agent", "create", "main", "--workspace", f"owner/{workspace}"),
        )
        return Agent(made["id"], made["token"], workspace)

    async def make(self, key: str, *command: str) -> Json:
        kept = self.folder / f"made-{key}.json"
        if not kept.exists():
            runs = self.folder / "operator"
            runs.mkdir(exist_ok=True)
            done = await run_program(
                *(sys.executable, "-m", "tailnet.cli.main", *command),
                *("-o", "json", "--data-dir", self.data),
                folder=runs,
                timeout=30,
                env=_our_environment(self.folder),
                cwd=ROOT,
                name="tailnet",
            )
            assert done.returncode == 0, done.log
            kept.write_bytes(done.stdout)
        made: Json = json.loads(kept.read_bytes())
        return made


def _our_environment(folder: Path) -> dict[str, str]:
    """Ours runs from the source; settings of whoever runs the tests stay out."""
    kept = {"PYTHONPATH": str(ROOT)}
    if native := os.environ.get("TAILNET_NATIVE"):
        kept["TAILNET_NATIVE"] = native
    return clean_environment(folder / "home", **kept)
