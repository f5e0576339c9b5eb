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
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import urlsplit

import trio
import trustme

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
# ``tailnet`` from the source: nothing has to be installed.
TAILNET: Final = (
    sys.executable,
    "-c",
    "from tailnet.cli.main import main; main()",
)
OPERATOR: Final = (
    sys.executable,
    "-c",
    (
        "import json, sys; from tailnet.cli.main import run;"
        " sys.exit(max(run(command) for command in json.loads(sys.argv[1])))"
    ),
)
START_TIMEOUT: Final = 30.0  # seconds; the machine may be busy


class ServerKind(enum.Enum):
    OURS = "tailnet serve"
    REFERENCE = "coderserver"

    @property
    def version(self) -> str:
        """The newest API version that it knows."""
        return "2.11" if self is ServerKind.OURS else "2.6"


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
    workspace_id: str
    workspace: str


class _Hands(Protocol):
    """What an operator of a server does."""

    async def add_workspace(self, name: str) -> Agent: ...
    async def delete_workspace(self, name: str) -> None: ...


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
        ca_file: Who vouches for it, if that is nobody that the peers know.
    """

    kind: ServerKind
    program: Program
    url: str
    owner: User
    stranger: User
    agents: tuple[Agent, ...]

    _hands: _Hands = field(repr=False)
    ca_file: Path | None = None

    @property
    def agent(self) -> Agent:
        """The first agent; most scenarios need one."""
        return self.agents[0]

    def environment(self, home: Path) -> dict[str, str]:
        """The whole environment of an agent or client of this server."""
        trust = {"SSL_CERT_FILE": str(self.ca_file)} if self.ca_file else {}
        return clean_environment(home, **trust)

    async def add_workspace(self, name: str) -> Agent:
        """Make another workspace of the owner, with one agent."""
        return await self._hands.add_workspace(name)

    async def delete_workspace(self, name: str) -> None:
        """Delete a workspace, and its agent with it."""
        await self._hands.delete_workspace(name)

    async def operate(self, *commands: Sequence[str]) -> list[Json]:
        """Run ``tailnet`` commands on the data of a server of ours.

        Returns:
            Their JSON, of those that have any.
        """
        assert isinstance(self._hands, _Operator)
        return await self._hands.run(*commands)


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
    tls: bool = False,
    flags: Sequence[str] = (),
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
        tls: HTTPS alone, with a certificate of an authority in the folder.
            Not for the reference.
        flags: Further ones of the program.
        wrapper: A command that runs it, such as ``ip netns exec``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    url = access_url or f"{'https' if tls else 'http'}://{host}:{port}"
    ca_file = _issue_certificate(folder, urlsplit(url).hostname or "") if tls else None
    if kind is ServerKind.REFERENCE:
        opened = _open_reference(
            folder,
            *("--listen", f"{host}:{port}"),
            *("--access-url", url),
            *("--agents", str(agents)),
            *(["--block-direct"] if block_direct else []),
            *(["--force-websockets"] if force_websockets else []),
            *flags,
            wrapper=wrapper,
        )
    else:
        listen: tuple[str, ...] = ("--http-address", f"{host}:{port}")
        if tls:
            listen = (
                *("--http-address", "disable", "--tls-enable"),
                *("--tls-address", f"{host}:{port}"),
                *("--tls-cert-file", str(folder / "tls.crt")),
                *("--tls-key-file", str(folder / "tls.key")),
            )
        opened = _open_ours(
            folder,
            *listen,
            *("--access-url", url),
            *(["--block-direct-connections"] if block_direct else []),
            *(["--derp-force-websockets"] if force_websockets else []),
            *flags,
            agents=agents,
            wrapper=wrapper,
        )
    async with opened as (program, owner, stranger, its_agents, hands):
        yield Server(*(kind, program, url, owner, stranger, its_agents, hands, ca_file))


def _issue_certificate(folder: Path, host: str) -> Path:
    """Make a certificate for ``host``; returns the file of its authority."""
    authority = trustme.CA()
    ca_file = folder / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    leaf = authority.issue_cert(host)
    leaf.private_key_pem.write_to_path(folder / "tls.key")
    for number, pem in enumerate(leaf.cert_chain_pems):
        pem.write_to_path(folder / "tls.crt", append=number > 0)
    return ca_file


_Opened: TypeAlias = tuple[Program, User, User, tuple[Agent, ...], _Hands]


@contextlib.asynccontextmanager
async def _open_reference(
    folder: Path, *flags: str, wrapper: Sequence[str | Path]
) -> AsyncIterator[_Opened]:
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
            Agent(agent["id"], agent["token"], workspace["id"], workspace["name"])
            for workspace in inventory["workspaces"]
            for agent in workspace["agents"]
        )
        hands = _TestRoutes(f"http://{ready['address']}")
        yield program, owner, stranger, agents, hands


@dataclass(slots=True)
class _TestRoutes:
    """What only the reference has: routes that change who exists."""

    url: str

    async def add_workspace(self, name: str) -> Agent:
        made = await self._call("POST", "/workspaces", name=name, agents=["main"])
        (agent,) = made["agents"]
        return Agent(agent["id"], agent["token"], made["id"], name)

    async def delete_workspace(self, name: str) -> None:
        inventory = await self._call("GET", "/inventory")
        (found,) = (w["id"] for w in inventory["workspaces"] if w["name"] == name)
        await self._call("DELETE", f"/{found}")

    async def _call(self, method: str, path: str, **body: object) -> Json:
        request = urllib.request.Request(
            f"{self.url}/test{path}", json.dumps(body).encode(), method=method
        )
        return await trio.to_thread.run_sync(self._open, request)

    def _open(self, request: urllib.request.Request) -> Json:
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: Json = json.loads(answer.read() or b"{}")
            return found


@contextlib.asynccontextmanager
async def _open_ours(
    folder: Path, *flags: str, agents: int, wrapper: Sequence[str | Path]
) -> AsyncIterator[_Opened]:
    operator = _Operator(folder, folder / "data")
    # Before the server: the data directory is all that they share.
    owner, stranger, its_agents = await operator.prepare(agents)
    async with open_program(
        *wrapper,
        *(*TAILNET, "serve"),
        *flags,
        *("--data-dir", operator.data),
        log_file=folder / "serve.log",
        env=_our_environment(folder),
        cwd=ROOT,
        name="tailnet serve",
    ) as program:
        await program.wait_log(r"\bready\b", timeout=START_TIMEOUT)
        yield program, owner, stranger, its_agents, operator


@dataclass(slots=True)
class _Operator:
    """Makes users, workspaces and agents with the ``tailnet`` command."""

    folder: Path
    data: Path

    async def prepare(self, agents: int) -> tuple[User, User, tuple[Agent, ...]]:
        """Make two users, and workspaces of the first, unless that was done.

        What was made is kept in the folder: tokens are told once.
        """
        kept = self.folder / "made.json"
        if not kept.exists():
            made = await self.run(
                ("user", "create", "owner"),
                ("user", "create", "stranger"),
                *(
                    command
                    for number in range(1, agents + 1)
                    for command in self.workspace_commands(f"ws{number}")
                ),
            )
            kept.write_text(json.dumps(made))
        owner, stranger, *rest = json.loads(kept.read_text())
        return (
            User(owner["id"], owner["username"], owner["token"]),
            User(stranger["id"], stranger["username"], stranger["token"]),
            tuple(
                self.agent_of(workspace, agent)
                for workspace, agent in zip(rest[::2], rest[1::2], strict=True)
            ),
        )

    async def add_workspace(self, name: str) -> Agent:
        workspace, agent = await self.run(*self.workspace_commands(name))
        return self.agent_of(workspace, agent)

    async def delete_workspace(self, name: str) -> None:
        await self.run(("workspace", "delete", f"owner/{name}"))

    @staticmethod
    def workspace_commands(name: str) -> list[tuple[str, ...]]:
        return [
            ("workspace", "create", f"owner/{name}"),
            ("agent", "create", f"owner/{name}/main"),
        ]

    @staticmethod
    def agent_of(workspace: Json, agent: Json) -> Agent:
        return Agent(agent["id"], agent["token"], workspace["id"], workspace["name"])

    async def run(self, *commands: Sequence[str]) -> list[Json]:
        """Run commands in one process; it takes long to start one."""
        runs = self.folder / "operator"
        runs.mkdir(exist_ok=True)
        where = ("-o", "json", "--data-dir", str(self.data))
        done = await run_program(
            *(*OPERATOR, json.dumps([[*command, *where] for command in commands])),
            folder=runs,
            timeout=60,
            env=_our_environment(self.folder),
            cwd=ROOT,
            name="tailnet",
        )
        assert done.returncode == 0, done.log
        text, answers, decoder = done.stdout.decode().strip(), [], json.JSONDecoder()
        while text:
            answer, end = decoder.raw_decode(text)
            answers.append(answer)
            text = text[end:].strip()
        return answers


def _our_environment(folder: Path) -> dict[str, str]:
    """Ours runs from the source; settings of whoever runs the tests stay out."""
    kept = {"PYTHONPATH": str(ROOT)}
    if native := os.environ.get("TAILNET_NATIVE"):
        kept["TAILNET_NATIVE"] = native
    return clean_environment(folder / "home", **kept)
