"""Runs: a fresh server, and the load generator or real clients against it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import trio

from bench.figures import Side
from bench.record import Run
from bench.scenarios import TRANSFER_BYTES, Kind, Scenario
from tests.interop.coder.servers import ServerKind, open_server
from tests.interop.programs import (
    Finished,
    Program,
    ProgramError,
    free_port,
    run_program,
)
from tests.interop.relay_program import (
    RelayKind,
    Security,
    open_relay,
    wait_listening,
)
from tests.interop.tailcat import DamagedFileError, Tailcat, make_file, send_file
from tools.install_peers import SYSTEM_PATH, cache_dir

__all__ = ("LoaderError", "NoCargoError", "Tools", "build_loader", "run_once")

CRATE: Final = Path(__file__).resolve().parent / "loader"
RUN_TIMEOUT: Final = 120.0  # seconds
# The largest crowd connects for half a minute, and is silent for as long.
CROWD_TIMEOUT: Final = 240.0

# Which relay, or which server, of tests/interop a side is.
RELAYS: Final = {Side.OURS: RelayKind.OURS, Side.DERPER: RelayKind.DERPER}
SERVERS: Final = {Side.OURS: ServerKind.OURS, Side.CODER: ServerKind.REFERENCE}
# Ours without its limit of requests a minute: one user is all the clients.
# Coder's as it is deployed, with 5 s between two looks at the DERP map.
SERVER_FLAGS: Final = {
    Side.OURS: (
        "--dangerous-disable-rate-limits",
        *("--stun-address", "disable"),
    ),
    Side.CODER: ("--derp-map-interval", "5s"),
}


class LoaderError(Exception):
    """The load generator does not build; the text says why."""


class NoCargoError(LoaderError):
    """There is nothing to build it with, which is no fault of ours."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs of a run.

    Attributes:
        loader: The load generator.
        tailcat: The real client.
        cores: One for the server and one for the load generator, where they
            are pinned; None if there is but one, and nothing is pinned.
        derper: The real relay.
        coderserver: The program around Coder's own coordinator.
    """

    loader: Path | None
    tailcat: Path | None
    cores: tuple[int, int] | None
    derper: Path | None = None
    coderserver: Path | None = None

    def has(self, side: Side) -> bool:
        """Whether there is a server of that side."""
        programs = {Side.DERPER: self.derper, Side.CODER: self.coderserver}
        return programs.get(side, self) is not None

    def can_run(self, scenario: Scenario) -> bool:
        needed = self.tailcat if scenario.kind is Kind.TRANSFER else self.loader
        return needed is not None


def build_loader() -> Path:
    """Build the load generator, which takes a moment if nothing has changed.

    Raises:
        NoCargoError: There is no cargo.
        LoaderError: It failed.
    """
    home = os.environ.get("CARGO_HOME") or str(Path.home() / ".cargo")
    cargo = shutil.which("cargo", path=f"{SYSTEM_PATH}{os.pathsep}{home}/bin")
    if cargo is None:
        raise NoCargoError("no cargo: install Rust for the load generator")
    target = cache_dir() / "loader-target"
    done = subprocess.run(
        [
            cargo,
            "build",
            "--quiet",
            "--release",
            "--locked",
            f"--target-dir={target}",
            f"--manifest-path={CRATE / 'Cargo.toml'}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LoaderError(f"cargo build of {CRATE} failed:\n{done.stdout.rstrip()}")
    return target / "release" / "derp-loader"


async def run_once(
    scenario: Scenario, side: Side, repetition: int, tools: Tools, *, quick: bool
) -> Run:
    """Run a scenario once, against a fresh relay.

    Whatever the programs do comes back as a Run, an error as one without a
    result.
    """
    run = Run(scenario.name, side, repetition, None)
    special = {Kind.TRANSFER: _transfer, Kind.CROWD: _crowd}
    measure = special.get(scenario.kind, _load)
    try:
        with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
            run.result = await measure(scenario, side, tools, Path(name), quick=quick)
    except (ProgramError, DamagedFileError, trio.TooSlowError) as exc:
        run.error = str(exc) or repr(exc)
    except ValueError as exc:
        run.error = f"the load generator's answer: {exc}"
    return run


async def _load(
    scenario: Scenario, side: Side, tools: Tools, folder: Path, *, quick: bool
) -> dict[str, Any]:
    """Run the load generator; returns what it says."""
    assert tools.loader is not None
    wrapper: tuple[str | Path, ...] = ()
    arguments = [*scenario.loader_arguments(quick=quick)]
    if scenario.pinned and tools.cores is not None:
        relay_core, loader_core = tools.cores
        wrapper = ("taskset", "--cpu-list", str(relay_core))
        arguments += ["--cpu", str(loader_core)]
    async with open_relay(
        folder / "relay",
        kind=RELAYS[side],
        security=Security.PINNED if scenario.tls else Security.PLAIN,
        flags=("-stun=false",),
        wrapper=wrapper,
    ) as relay:
        await wait_listening(relay)
        done = await run_program(
            tools.loader,
            *arguments,
            *("--addr", f"{relay.host}:{relay.port}"),
            *("--relay-pid", str(relay.program.process.pid)),
            folder=folder,
            timeout=RUN_TIMEOUT,
        )
        return _answer(done, relay.program)


async def _crowd(
    scenario: Scenario, side: Side, tools: Tools, folder: Path, *, quick: bool
) -> dict[str, Any]:
    """Run the load generator against a coordinator; returns what it says."""
    assert tools.loader is not None
    wrapper: tuple[str | Path, ...] = ()
    arguments = [*scenario.loader_arguments(quick=quick)]
    if scenario.pinned and tools.cores is not None:
        server_core, loader_core = tools.cores
        wrapper = ("taskset", "--cpu-list", str(server_core))
        arguments += ["--cpu", str(loader_core)]
    host, port = "127.0.0.1", free_port()
    async with open_server(
        SERVERS[side],
        folder / "server",
        host=host,
        port=port,
        flags=SERVER_FLAGS[side],
        wrapper=wrapper,
    ) as server:
        done = await run_program(
            tools.loader,
            *arguments,
            *("--addr", f"{host}:{port}"),
            *("--agent-id", server.agent.id, "--agent-token", server.agent.token),
            *("--user-token", server.owner.token),
            *("--relay-pid", str(server.program.process.pid)),
            folder=folder,
            timeout=CROWD_TIMEOUT,
        )
        return _answer(done, server.program)


def _answer(done: Finished, program: Program) -> dict[str, Any]:
    """What the load generator found out.

    Raises:
        ProgramError: It says why it failed.
        ValueError: It talks nonsense.
    """
    if done.returncode:
        raise ProgramError(
            f"{done.log.strip()} (status {done.returncode}); the last words of"
            f" {program.name}:\n{program.last_words()}"
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


async def _transfer(
    scenario: Scenario, side: Side, tools: Tools, folder: Path, *, quick: bool
) -> dict[str, Any]:
    """Send a file from one real client to another."""
    del quick  # The same for both, or the start would be most of it.
    assert tools.tailcat is not None
    make = functools.partial(make_file, folder / "source", TRANSFER_BYTES)
    source = await trio.to_thread.run_sync(make)
    async with open_relay(
        folder / "relay",
        kind=RELAYS[side],
        security=Security.PINNED if scenario.tls else Security.PLAIN,
    ) as relay:
        sender = Tailcat.for_relay(tools.tailcat, folder / "sender", relay)
        receiver = Tailcat.for_relay(tools.tailcat, folder / "receiver", relay)
        transfer = await send_file(relay, sender, receiver, source, timeout=RUN_TIMEOUT)
        used = psutil.Process(relay.program.process.pid).cpu_times()
        counters = await relay.counters()
        dropped = counters.matching("derp_packets_dropped{")
        megabytes = TRANSFER_BYTES / 1e6
        return {
            "seconds": transfer.seconds,
            "mb_per_second": megabytes / transfer.seconds,
            "relay_cpu_ms_per_mb": (used.user + used.system) * 1e3 / megabytes,
            "packets_relayed": counters["derp_packets_sent"],
            "packets_dropped": sum(dropped.values()),
        }
