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
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

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

__all__ = ("DERP_ONLY", "Tailcat", "TailcatServer", "make_file", "send_file", "sha256")

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
        self, *arguments: str, stdin: Path | None = None
    ) -> AsyncIterator[Program]:
        """Run one client while the block runs."""
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


async def send_file(
    relay: Relay,
    sender: Tailcat,
    receiver: Tailcat,
    source: Path,
    *,
    serve_flags: tuple[str, ...] = (),
    node: Mapping[str, object] | None = None,
    timeout: float = 60,
) -> float:
    """Send a file from one client to another, and compare what arrived.

    Args:
        relay: The relay in the DERP map.
        sender: The tailcat that connects.
        receiver: The tailcat that accepts.
        source: The file.
        serve_flags: Further flags of the receiver.
        node: Changes to the relay's DERPNode.
        timeout: Seconds each of the two may take.

    Returns:
        Seconds from the sender's start to the receiver's end.
    """
    with serve_http({"/derpmap.json": relay.derp_map(**(node or {}))}) as url:
        async with receiver.serve(f"{url}/derpmap.json", *serve_flags) as server:
            began = time.monotonic()
            async with sender.open(server.token, stdin=source) as client:
                await client.wait_success(timeout=timeout)
                await server.program.wait_success(timeout=timeout)
            seconds = time.monotonic() - began
            assert server.output.stat().st_size == source.stat().st_size
            assert sha256(server.output) == sha256(source)
            return seconds
