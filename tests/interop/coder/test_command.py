"""The unmodified ``coder`` command: agent, ping, port-forward, speedtest, ssh."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.interop.coder.servers import Server, ServerKind, open_server
from tests.interop.network import HOST_A, RELAY, Network
from tests.interop.programs import (
    Finished,
    Program,
    clean_environment,
    open_program,
    run_program,
)
from tests.interop.tools import find_coder_program, find_debian_tool, needs

PORT = 8080
FORWARDED = 8099


@dataclass(slots=True)
class Command:
    """``coder`` as the owner of the workspaces, on the machine of the client."""

    server: Server
    network: Network
    folder: Path

    def argv(self, *arguments: str) -> tuple[str | Path, ...]:
        return (
            *self.network.enter(self.network.b),
            find_coder_program("coder"),
            *("--global-config", self.folder / "config"),
            *("--url", self.server.url),
            *("--token", self.server.owner.token),
            "--no-version-warning",
            *arguments,
        )

    def environment(self) -> dict[str, str]:
        return clean_environment(self.folder / "home")

    async def run(self, *arguments: str, timeout: float = 60) -> Finished:
        runs = self.folder / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        return await run_program(
            *self.argv(*arguments),
            folder=runs,
            timeout=timeout,
            env=self.environment(),
            name=f"coder {arguments[0]}",
        )

    async def succeed(self, *arguments: str) -> str:
        done = await self.run(*arguments)
        assert done.returncode == 0, done.log
        return done.stdout.decode()


@contextlib.asynccontextmanager
async def open_coder_agent(
    server: Server, network: Network, folder: Path
) -> AsyncIterator[Program]:
    """``coder agent``, on the machine of the agent, until it is ready."""
    folder.mkdir()
    async with open_program(
        *network.enter(network.a),
        find_coder_program("coder"),
        "agent",
        *("--log-dir", folder, "--script-data-dir", folder),
        log_file=folder / "agent.stderr",
        env=clean_environment(
            folder / "home",
            CODER_AGENT_URL=server.url,
            CODER_AGENT_TOKEN=server.agent.token,
            SHELL="/bin/sh",
        ),
        name="coder agent",
    ) as program:
        await program.wait_log("set lifecycle state.*ready", timeout=20)
        yield program


@contextlib.asynccontextmanager
async def open_command(
    kind: ServerKind, network: Network, folder: Path
) -> AsyncIterator[Command]:
    needs(find_coder_program, "coder")
    async with (
        open_server(
            kind,
            folder / "server",
            host=RELAY,
            port=PORT,
            wrapper=network.enter(network.r),
        ) as server,
        open_coder_agent(server, network, folder / "agent"),
    ):
        yield Command(server, network, folder)


@pytest.mark.slow
async def test_command(kind: ServerKind, network: Network, tmp_path: Path) -> None:
    with trio.fail_after(110):
        async with open_command(kind, network, tmp_path) as coder:
            workspace = coder.server.agent.workspace

            said = await coder.succeed("ping", workspace, "--num", "5")
            pongs = [line for line in said.splitlines() if "pong from" in line]
            assert len(pongs) == 5
            assert f"pong from {workspace} p2p via {HOST_A}:" in pongs[-1]

            secret = secrets.token_hex(8)
            said = await coder.succeed("ssh", workspace, f"echo {secret} $((6*7))")
            assert f"{secret} 42" in said

            said = await coder.succeed(
                *("speedtest", workspace, "--time", "2s", "--output", "json")
            )
            overall = json.loads(said)["overall"]
            assert overall["throughput_mbits"] > 1

            await forward_a_port(coder, workspace)


async def forward_a_port(coder: Command, workspace: str) -> None:
    """A web server of the agent's machine appears on the client's."""
    curl = needs(find_debian_tool, "curl")
    page = coder.folder / "www"
    page.mkdir()
    (page / "file").write_bytes(content := secrets.token_bytes(3_000_000))
    network = coder.network
    async with (
        open_program(
            *network.enter(network.a),
            *(sys.executable, "-m", "http.server", "8000"),
            *("--bind", "127.0.0.1", "--directory", page),
            log_file=coder.folder / "http.log",
            env=coder.environment(),
        ),
        open_program(
            *coder.argv("port-forward", workspace, "--tcp", f"{FORWARDED}:8000"),
            log_file=coder.folder / "forward.log",
            stdout=coder.folder / "forward.out",
            env=coder.environment(),
            name="coder port-forward",
        ) as forward,
    ):
        await forward.wait_log("Ready!", timeout=20)
        got = await run_program(
            *network.enter(network.b),
            *(curl, "--silent", "--show-error", "--fail"),
            *("--retry", "20", "--retry-delay", "1", "--retry-all-errors"),
            f"http://127.0.0.1:{FORWARDED}/file",
            folder=coder.folder / "runs",
            timeout=30,
            env=coder.environment(),
        )
        assert got.returncode == 0, got.log
        assert got.stdout == content
