"""Relays in processes of their own: derper, and ours with the same flags."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from tests.interop.probe.wire import Target
from tests.interop.tools import find_go_program

__all__ = (
    "Kind",
    "RelayError",
    "RelayProcess",
    "free_port",
    "open_relay_process",
)

Kind: TypeAlias = Literal["derper", "ours"]

_ROOT: Final = Path(__file__).resolve().parents[2]
_START_TIMEOUT: Final = 20.0
_STOP_TIMEOUT: Final = 5.0
_READY: Final = "tailnet-relay ready"


class RelayError(Exception):
    """A relay did not start; the message ends with what it printed."""


def free_port(host: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that is free at the moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


@dataclass
class RelayProcess:
    """A running relay.

    Attributes:
        kind: Whose it is.
        target: Where it listens.
        process: The process.
        directory: Its key, its certificate and ``log``.
    """

    kind: Kind
    target: Target
    process: subprocess.Popen[bytes]
    directory: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has printed."""
        return (self.directory / "log").read_text(errors="replace")

    def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL after 5 s."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def open_relay_process(
    kind: Kind,
    *,
    tls: bool = False,
    host: str = "127.0.0.1",
    extra: tuple[str, ...] = (),
) -> Iterator[RelayProcess]:
    """Start a relay with STUN (and with TLS also a helper port).

    Args:
        kind: Whose.
        tls: With a self-signed certificate for ``host``.
        host: A loopback address.
        extra: More flags.

    Raises:
        RelayError: It ended, or does not listen within 20 s.
    """
    directory = Path(tempfile.mkdtemp(prefix="tailnet-relay-"))
    target = Target(
        host,
        free_port(host),
        tls=tls,
        http_port=free_port(host) if tls else None,
        stun_port=free_port(host, socket.SOCK_DGRAM),
    )
    try:
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [*_program(kind), *_flags(target, directory), *extra],
                cwd=_ROOT,
                # Not the user's: derper looks for keys in the home directory.
                env={**os.environ, "HOME": str(directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        relay = RelayProcess(kind, target, process, directory)
        try:
            _wait_until_ready(relay)
            yield relay
        finally:
            relay.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _program(kind: Kind) -> list[str]:
    if kind == "ours":
        return [sys.executable, "-m", "relay"]
    return [str(find_go_program("derper"))]


def _flags(target: Target, directory: Path) -> list[str]:
    flags = [
        *("-a", target.authority),
        *("-c", str(directory / "relay.key")),
        *("-stun-port", str(target.stun_port)),
        *("-http-port", str(-1 if target.http_port is None else target.http_port)),
    ]
    if target.tls:
        flags += [
            *("-certmode", "manual"),
            *("-certdir", str(directory / "certs")),
            *("-hostname", target.host),
        ]
    return flags


def _wait_until_ready(relay: RelayProcess) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        if relay.process.poll() is not None:
            raise RelayError(
                f"{relay.kind} ended with status {relay.process.returncode}:\n"
                f"{relay.log}"
            )
        if _is_ready(relay):
            return
        time.sleep(0.05)
    raise RelayError(f"{relay.kind} is not ready after 20 s:\n{relay.log}")


def _is_ready(relay: RelayProcess) -> bool:
    if relay.kind == "ours":
        return _READY in relay.log
    # derper does not say when it is.
    ports = (relay.target.port, relay.target.http_port)
    return all(_accepts(relay.target.host, port) for port in ports if port is not None)


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
