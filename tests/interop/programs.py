"""Running real programs: a log to wait on, and a certain end.

A program's standard error goes to a file, never into a pipe that somebody
would have to keep reading; what it said stays there after a failed test.
Waiting for a line looks at that file again and again, in real time: these are
other people's programs, and there is nothing else to wait on.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import random
import re
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NamedTuple

import trio

from tools.install_peers import SYSTEM_PATH

__all__ = (
    "POLL",
    "Finished",
    "Program",
    "ProgramError",
    "clean_environment",
    "free_port",
    "open_program",
    "run_program",
    "serve_http",
)

POLL: Final = 0.02  # seconds
GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL

# Below the range from which the kernel takes ports of outgoing connections
# (32768 up), so that none of those can take a port between our choosing it
# and a program binding it.
PORTS: Final = range(20_000, 32_000)


class ProgramError(Exception):
    """A program did not do what it was started for; ends with its last words."""


class Finished(NamedTuple):
    """A program that has ended."""

    returncode: int
    stdout: bytes
    log: str


@dataclass(slots=True)
class Program:
    """A program that runs, or has run.

    Attributes:
        name: For messages.
        process: The process itself.
        log_file: Where its standard error goes.
    """

    name: str
    process: trio.Process
    log_file: Path
    _log_start: int

    @property
    def log(self) -> str:
        """What this run of the program has said so far."""
        with self.log_file.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def last_words(self) -> str:
        """The end of the log, for an error message."""
        lines = [line[:400] for line in self.log.splitlines()[-15:]]
        return "\n".join(f"    {line}" for line in lines) or "    (it said nothing)"

    async def wait_log(self, pattern: str, *, timeout: float = 10) -> re.Match[str]:
        """Wait until the log has a match of ``pattern``.

        Args:
            pattern: Regular expression; ``^`` and ``$`` are line ends.
            timeout: Seconds.

        Raises:
            ProgramError: The program ended without it, or time is up.
        """
        return await self._wait(lambda: self.log, pattern, timeout)

    async def wait_output(
        self, file: Path, pattern: str, *, timeout: float = 10
    ) -> re.Match[str]:
        """Wait until ``file``, where its output goes, has a match of ``pattern``.

        Otherwise as wait_log.
        """
        return await self._wait(file.read_text, pattern, timeout)

    async def _wait(
        self, text: Callable[[], str], pattern: str, timeout: float
    ) -> re.Match[str]:
        expression = re.compile(pattern, re.MULTILINE)
        with trio.move_on_after(timeout):
            while True:
                ended = self.process.poll() is not None
                if match := expression.search(text()):
                    return match
                if ended:
                    raise self.error(f"ended before it said {pattern!r}")
                await trio.sleep(POLL)
        raise self.error(f"did not say {pattern!r} within {timeout} s")

    async def wait(self, *, timeout: float) -> int:
        """Wait for the program to end by itself, and return its status.

        Raises:
            ProgramError: It still runs after ``timeout`` seconds.
        """
        with trio.move_on_after(timeout):
            await self.process.wait()
        if self.process.returncode is not None:
            return self.process.returncode
        raise self.error(f"still runs after {timeout} s")

    async def wait_success(self, *, timeout: float) -> None:
        """Wait for the program to end by itself with status 0."""
        if status := await self.wait(timeout=timeout):
            raise self.error(f"ended with status {status}")

    async def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL. Nothing happens if it has ended."""
        with trio.CancelScope(shield=True):
            if self.process.poll() is None:
                self.process.terminate()
                with trio.move_on_after(GRACE):
                    await self.process.wait()
            await self.kill()

    async def kill(self) -> None:
        """End it with SIGKILL at once."""
        with trio.CancelScope(shield=True):
            if self.process.poll() is None:
                self.process.kill()
            await self.process.wait()

    def error(self, what: str) -> ProgramError:
        return ProgramError(f"{self.name} {what}; its last words:\n{self.last_words()}")


@contextlib.asynccontextmanager
async def open_program(
    *argv: str | Path,
    log_file: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: Path | int | None = None,
    stdout: Path | None = None,
    name: str | None = None,
) -> AsyncIterator[Program]:
    """Run a program while the block runs.

    Args:
        argv: Program and arguments.
        log_file: Where its standard error goes, and is appended to.
        env: Its whole environment; None for ours.
        cwd: Its working directory.
        stdin: A file or a descriptor to read; nothing if None.
        stdout: A file to write; None throws the output away.
        name: For messages; None for the program's file name.
    """
    with contextlib.ExitStack() as files:
        log = files.enter_context(log_file.open("ab"))
        log_start = log.tell()
        source: int | IO[bytes] = subprocess.DEVNULL
        if isinstance(stdin, int):
            source = stdin
        elif stdin is not None:
            source = files.enter_context(stdin.open("rb"))
        sink = files.enter_context(stdout.open("wb")) if stdout else None
        process: trio.Process = await trio.lowlevel.open_process(
            [str(argument) for argument in argv],
            stdin=source,
            stdout=sink or subprocess.DEVNULL,
            stderr=log,
            env=None if env is None else dict(env),
            cwd=cwd,
            # A Ctrl-C of the terminal is ours to hear; we then end it in
            # order, with a last chance to read its log.
            start_new_session=True,
        )
    program = Program(name or Path(argv[0]).name, process, log_file, log_start)
    try:
        yield program
    finally:
        await program.stop()


async def run_program(
    *argv: str | Path,
    folder: Path,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: Path | None = None,
    name: str | None = None,
) -> Finished:
    """Run a program to its end.

    Args:
        argv: Program and arguments.
        folder: An existing folder, for its output.
        timeout: Seconds it may take.
        env: Its whole environment; None for ours.
        cwd: Its working directory.
        stdin: A file to read; nothing if None.
        name: For messages.

    Raises:
        ProgramError: It took too long.
    """
    number = len(list(folder.iterdir()))
    stdout = folder / f"{number}.stdout"
    async with open_program(
        *argv,
        log_file=folder / f"{number}.log",
        env=env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        name=name,
    ) as program:
        status = await program.wait(timeout=timeout)
        return Finished(status, stdout.read_bytes(), program.log)


def clean_environment(home: Path, **extra: str) -> dict[str, str]:
    """Return an environment in which only ``extra`` can change behaviour.

    Debug switches, proxies and certificate files of whoever runs the tests
    must not reach the peers.
    """
    home.mkdir(parents=True, exist_ok=True)
    return {
        "HOME": str(home),
        "PATH": SYSTEM_PATH,
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        "LANG": "C.UTF-8",
        **extra,
    }


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is free for both TCP and UDP right now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.sample(PORTS, 200):
        with contextlib.ExitStack() as sockets:
            try:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    sock = sockets.enter_context(socket.socket(family, kind))
                    sock.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port in {PORTS}")


@contextlib.contextmanager
def serve_http(pages: Mapping[str, bytes]) -> Iterator[str]:
    """Serve fixed pages over HTTP on loopback; yields the URL of the root."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
