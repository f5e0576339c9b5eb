"""tailcat: real Tailscale clients without a control server.

Two of them make a tunnel: a server, which prints an address (a token), and a
client that is given it. In between stands Tailscale's own data plane with
WireGuard, disco, STUN and DERP. The token carries the server's key and its
DERP node, so the client needs no DERP map.

With :data:`DERP_ONLY` in their environment they never send data to each other
directly, so every byte goes through the relay; STUN still works.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import trio

from tests.interop.programs import (
    POLL,
    Finished,
    Program,
    clean_environment,
    open_program,
    run_program,
    serve_http,
)
from tests.interop.relay_program import Relay, Security

__all__ = (
    "DERP_ONLY",
    "DamagedFileError",
    "Tailcat",
    "TailcatServer",
    "Transfer",
    "make_file",
    "send_file",
    "sha256",
    "wait_size",
)

DERP_ONLY: Final = {"TS_DEBUG_NEVER_DIRECT_UDP": "1"}
TOKEN: Final = r"(?<![\w-])tc[\w-]{40,}"


@dataclass(frozen=True, slots=True)
class TailcatServer:
    """A server that is ready for clients."""

    program: Program
    token: str
    output: Path


@dataclass(slots=True)
class Tailcat:
    """One tailcat installation with a home of its own.

    Attributes:
        binary: The program.
        folder: For its home, logs and output; made if need be.
        env: Added to a clean environment.
        wrapper: A command that runs it, such as ``ip netns exec NAME``.
    """

    binary: Path
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    wrapper: tuple[str | Path, ...] = ()

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def for_relay(cls, binary: Path, folder: Path, relay: Relay, **env: str) -> Tailcat:
        """One that trusts ``relay`` and sends all data through it."""
        trust = {}
        if relay.security is Security.PLAIN:
            trust["TS_DEBUG_USE_DERP_HTTP"] = "1"
        elif relay.security is Security.CA:
            trust["SSL_CERT_FILE"] = str(relay.ca_file)
        return cls(binary, folder, {**DERP_ONLY, **trust, **env})

    def _argv(self, *arguments: str) -> tuple[str | Path, ...]:
        return (*self.wrapper, self.binary, "--verbose", "--key=new", *arguments)

    def _environment(self) -> dict[str, str]:
        return clean_environment(self.folder / "home", **self.env)

    @contextlib.asynccontextmanager
    async def serve(
        self, map_url: str, *arguments: str, timeout: float = 20
    ) -> AsyncIterator[TailcatServer]:
        """Run a server while the block runs.

        Args:
            map_url: Where it gets its DERP map.
            arguments: Of the ``serve`` command; none of them: accept one
                connection and write what comes to ``output``.
            timeout: Seconds it may take to get ready.
        """
        output = self.folder / "server.out"
        async with open_program(
            *self._argv(f"--derpmap-url={map_url}"),
            *("serve", "--full-address", *arguments),
            log_file=self.folder / "server.log",
            env=self._environment(),
            stdout=output,
            name="tailcat server",
        ) as program:
            match = await program.wait_log(TOKEN, timeout=timeout)
            # It is at home from here on: a client's first packet finds it.
            await program.wait_log(r"derp-\d+ connected", timeout=timeout)
            yield TailcatServer(program, match[0], output)

    async def run(
        self, *arguments: str, stdin: Path | None = None, timeout: float = 60
    ) -> Finished:
        """Run one client to its end.

        Args:
            arguments: A token, or a command with one.
            stdin: A file that it sends.
            timeout: Seconds it may take.

        Raises:
            ProgramError: It took too long.
        """
        return await run_program(
            *self._argv(*arguments),
            folder=self.folder,
            timeout=timeout,
            env=self._environment(),
            stdin=stdin,
            name="tailcat client",
        )

    @contextlib.asynccontextmanager
    async def open(
        self, *arguments: str, stdin: Path | int | None = None
    ) -> AsyncIterator[Program]:
        """Run one client while the block runs; it writes to ``client.out``.

        Args:
            arguments: A token, or a command with one.
            stdin: A file that it sends, or a descriptor to read from.
        """
        async with open_program(
            *self._argv(*arguments),
            log_file=self.folder / "client.log",
            env=self._environment(),
            stdin=stdin,
            stdout=self.folder / "client.out",
            name="tailcat client",
        ) as program:
            yield program


def make_file(path: Path, size: int) -> Path:
    """Fill a new file with ``size`` random bytes."""
    with path.open("wb") as file:
        while size > 0:
            size -= file.write(os.urandom(min(size, 1 << 20)))
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def wait_size(path: Path, size: int, *, timeout: float) -> None:
    """Wait until a file has at least ``size`` bytes."""
    with trio.fail_after(timeout):
        while not path.exists() or path.stat().st_size < size:
            await trio.sleep(POLL)


class DamagedFileError(Exception):
    """What arrived is not what was sent."""


class Transfer(NamedTuple):
    """A file that arrived whole.

    Attributes:
        seconds: From the sender's start to the receiver's end.
        sha256: Of what arrived; it equals that of the source.
    """

    seconds: float
    sha256: str


class HasMap(Protocol):
    """A relay that can be put into a DERP map."""

    def derp_map(self, **changes: object) -> bytes:
        """The map; ``changes`` go into the relay's node."""
        ...


async def send_file(
    relay: HasMap,
    sender: Tailcat,
    receiver: Tailcat,
    source: Path,
    *,
    serve_flags: tuple[str, ...] = (),
    node: Mapping[str, object] | None = None,
    meanwhile: Callable[[Path], Awaitable[object]] | None = None,
    report: Callable[[int], object] = lambda _: None,
    timeout: float = 60,
) -> Transfer:
    """Send a file from one client to another, and compare what arrived.

    Args:
        relay: The relay in the DERP map.
        sender: The tailcat that connects.
        receiver: The tailcat that accepts.
        source: The file.
        serve_flags: Further flags of the receiver.
        node: Changes to the relay's DERPNode in the map.
        meanwhile: Called once the sender runs, with the file that grows.
        report: Called again and again with the bytes that have arrived.
        timeout: Seconds that the two may take.

    Raises:
        ProgramError: One of the two failed, or took too long.
        DamagedFileError: The bytes differ.
    """
    with serve_http({"/derpmap.json": relay.derp_map(**(node or {}))}) as url:
        async with receiver.serve(f"{url}/derpmap.json", *serve_flags) as server:
            began = time.monotonic()
            async with sender.open(server.token, stdin=source) as client:
                if meanwhile is not None:
                    await meanwhile(server.output)
                await _wait_both(client, server, report, timeout=timeout)
            seconds = time.monotonic() - began
            sent, received = sha256(source), sha256(server.output)
            if sent != received:
                raise DamagedFileError(
                    f"{server.output.stat().st_size} bytes with sha256 {received}"
                    f" arrived, {source.stat().st_size} with {sent} were sent"
                )
            return Transfer(seconds, received)


async def _wait_both(
    client: Program,
    server: TailcatServer,
    report: Callable[[int], object],
    *,
    timeout: float,
) -> None:
    """Wait until both ends are done; raise as soon as one has failed."""
    with trio.move_on_after(timeout):
        while True:
            states = [client.process.poll(), server.program.process.poll()]
            report(server.output.stat().st_size)
            if None not in states or any(states):
                break
            await trio.sleep(POLL)
    await client.wait_success(timeout=0)
    await server.program.wait_success(timeout=0)
