"""Running the real derper, Tailscale's relay, for tests.

The binary is ``$TAILNET_DERPER``, or else what ``make peers`` builds in the
user's cache. A test that wants it is skipped, saying so, where there is none.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
import trio

from tailnet.derp.derpmap import DERPNode

HOST = "127.0.0.1"
START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0
_PIN = re.compile(r'"CertName":"(sha256-raw:[0-9a-f]{64})"')


def derper_path() -> Path:
    """Where the binary is; skips the test if it is not there."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(
        os.environ.get("TAILNET_DERPER") or Path(cache, "tailnet-dev/bin/derper")
    )
    if not os.access(path, os.X_OK):
        pytest.skip(f"no derper at {path}; set TAILNET_DERPER, or run `make peers`")
    return path


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


@dataclass
class Derper:
    """A derper that can be started, stopped and killed again and again.

    It keeps its key, certificate and port.

    Args:
        directory: Its files go there.
        tls: TLS with a self-signed certificate, or plain HTTP.
        args: More flags.
    """

    directory: Path
    tls: bool = False
    args: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    cert_name: str = ""

    @property
    def log(self) -> str:
        """All that it has written."""
        return (self.directory / "log").read_text(errors="replace")

    @property
    def node(self) -> DERPNode:
        """Its entry in a DERP map."""
        return DERPNode(
            name="900a",
            region_id=900,
            host_name=HOST,
            ipv4=HOST,
            ipv6="none",
            derp_port=self.port,
            cert_name=self.cert_name,
            force_http=not self.tls,
        )

    def spawn(self) -> None:
        """Start the process; ``is_ready`` tells when it listens."""
        command = [
            str(derper_path()),
            "-a",
            f"{HOST}:{self.port}",
            "-c",
            str(self.directory / "derper.key"),
            "-http-port",
            "-1",
            "-stun=false",
            *self.args,
        ]
        if self.tls:
            command += ["-certmode", "manual", "-hostname", HOST]
            command += ["-certdir", str(self.directory / "certs")]
        log: IO[bytes]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def is_ready(self) -> bool:
        """Whether it accepts connections; fails the test if it has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"derper ended early:\n{self.log}")
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        if self.tls:
            found = _PIN.search(self.log)
            assert found is not None, f"derper told no pin:\n{self.log}"
            self.cert_name = found.group(1)
        return True

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self.spawn()
        deadline = time.monotonic() + START_TIMEOUT
        while not self.is_ready():
            assert time.monotonic() < deadline, f"derper does not listen:\n{self.log}"
            time.sleep(0.02)

    async def astart(self) -> None:
        """``start`` for trio."""
        self.spawn()
        with trio.fail_after(START_TIMEOUT):
            while not self.is_ready():
                await trio.sleep(0.02)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """End the process, however it takes that."""
        if self.process is None:
            return
        self.process.send_signal(sig)
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def debug_vars(self) -> dict[str, object]:
        """Its counters; plain HTTP only."""
        with socket.create_connection((HOST, self.port), timeout=5) as sock:
            sock.sendall(b"GET /debug/vars HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        found: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return found


@contextmanager
def derper_process(directory: Path, *args: str, tls: bool = False) -> Generator[Derper]:
    """A running derper."""
    derper = Derper(directory, tls=tls, args=args)
    try:
        derper.start()
        yield derper
    finally:
        derper.stop()


@asynccontextmanager
async def open_derper(
    directory: Path, *args: str, tls: bool = False
) -> AsyncGenerator[Derper]:
    """A running derper, for trio."""
    derper = Derper(directory, tls=tls, args=args)
    try:
        await derper.astart()
        yield derper
    finally:
        derper.stop()
