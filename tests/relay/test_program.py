"""Signals, the ready line and the log; ``tests/relay/test_main.py`` and
``tests/cli/test_serve.py`` show them in whole programs."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog.testing
import trio

from relay.config import LogFormat
from relay.program import (
    MAX_LOGGED_LEN,
    _log_unraisable,
    configure_logging,
    ready_line,
    run_until_signal,
)
from tailnet.errors import ConfigError


class Server:
    """Does nothing, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.stopping = trio.Event()
        self.reloaded = trio.Event()

    def stop(self) -> None:
        self.told.append("stop")
        self.stopping.set()

    def reload(self) -> None:
        self.told.append("reload")
        self.reloaded.set()

    async def wait_stopping(self) -> None:
        await self.stopping.wait()


@asynccontextmanager
async def opened(
    server: Server, *, drain: Callable[[], object]
) -> AsyncIterator[Server]:
    yield server
    server.told.append("drain")
    drain()
    if drain is not nothing:
        await trio.sleep_forever()
    server.told.append("drained")


def nothing() -> None:
    pass


def kill(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_gracefully(number: signal.Signals) -> None:
    server = Server()
    with trio.fail_after(30):
        await run_until_signal(opened(server, drain=nothing), lambda _: kill(number))
    assert server.told == ["stop", "drain", "drained"]


async def test_second_signal_ends_at_once() -> None:
    server = Server()
    with trio.fail_after(30):
        await run_until_signal(
            opened(server, drain=lambda: kill(signal.SIGTERM)),
            lambda _: kill(signal.SIGTERM),
        )
    assert server.told == ["stop", "drain"]


async def test_hangup_reloads_and_goes_on() -> None:
    server = Server()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                run_until_signal,
                opened(server, drain=nothing),
                lambda _: kill(signal.SIGHUP),
            )
            await server.reloaded.wait()
            assert server.told == ["reload"]
            kill(signal.SIGTERM)
    assert server.told == ["reload", "stop", "drain", "drained"]


async def test_server_that_stops_by_itself() -> None:
    server = Server()
    with trio.fail_after(30):
        await run_until_signal(opened(server, drain=nothing), lambda s: s.stop())
    assert server.told == ["stop", "drain", "drained"]


@asynccontextmanager
async def failing(*errors: Exception, nurseries: int) -> AsyncIterator[Server]:
    async def fail(error: Exception) -> None:
        raise error

    if nurseries:
        async with trio.open_nursery() as nursery:
            for error in errors:
                nursery.start_soon(fail, error)
            if nurseries > 1:
                async with trio.open_nursery():
                    await trio.sleep_forever()
    else:
        await trio.lowlevel.checkpoint()
        await fail(errors[0])
    yield Server()


@pytest.mark.parametrize("nurseries", [0, 1, 2])
async def test_wrong_setting_comes_out_as_it_is(nurseries: int) -> None:
    with pytest.raises(ConfigError, match="port taken"):
        await run_until_signal(
            failing(ConfigError("port taken"), nurseries=nurseries), lambda _: None
        )


async def test_bug_beside_a_wrong_setting_is_not_hidden() -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(ZeroDivisionError),
        pytest.RaisesExc(ConfigError),
        flatten_subgroups=True,
    ):
        await run_until_signal(
            failing(ZeroDivisionError(), ConfigError(), nurseries=1), lambda _: None
        )


ADDRESSES = {"http": ("127.0.0.1", 80), "stun": ("::1", 3478)}


def test_ready_line_as_text() -> None:
    line = ready_line("program", ADDRESSES, LogFormat.TEXT, switch="python")
    assert line == "program ready http=127.0.0.1:80 stun=[::1]:3478 switch=python"


def test_ready_line_as_json() -> None:
    line = ready_line("program", ADDRESSES, LogFormat.JSON, switch="python")
    assert json.loads(line) == {
        "event": "ready",
        "switch": "python",
        "addresses": {"http": ["127.0.0.1", 80], "stun": ["::1", 3478]},
    }


def test_what_nobody_can_catch_goes_to_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server name that is not ASCII made a bare traceback on stderr."""

    class Broken:
        def __del__(self) -> None:
            b"\xff".decode("ascii")

    monkeypatch.setattr(sys, "unraisablehook", _log_unraisable)
    with structlog.testing.capture_logs() as lines:
        Broken()
    [line] = lines
    assert (line["event"], line["log_level"]) == ("unraisable exception", "debug")


# -- the log -------------------------------------------------------------------


@pytest.fixture
def log_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[TextIO], Any]]:
    """Configures the log as programs do, to a file."""

    def configure(file: TextIO, log_format: LogFormat = LogFormat.TEXT) -> Any:
        monkeypatch.setattr(sys, "stderr", file)
        configure_logging(log_format)
        return structlog.get_logger("test")

    yield configure
    structlog.reset_defaults()


def test_nobody_writes_lines_of_their_own(log_to: Callable[[TextIO], Any]) -> None:
    file = io.StringIO()
    log_to(file).info("refused", path="/\nforged\x1b[31m\u202e", name="\x9b2J")
    (line,) = file.getvalue().splitlines()
    assert "path=/\ufffdforged\ufffd[31m\ufffd" in line
    assert "name=\ufffd2J" in line


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_long_values_are_cut(
    log_to: Callable[[TextIO, LogFormat], Any], log_format: LogFormat
) -> None:
    file = io.StringIO()
    log_to(file, log_format).info("refused", path="x" * 100_000)
    assert len(file.getvalue()) < 2 * MAX_LOGGED_LEN
    assert "... (100000 characters)" in file.getvalue()


def test_exceptions_keep_their_lines(log_to: Callable[[TextIO], Any]) -> None:
    file = io.StringIO()
    try:
        raise ValueError("a bug")
    except ValueError:
        log_to(file).exception("a bug ends a connection")
    assert "Traceback" in file.getvalue()
    assert file.getvalue().endswith("ValueError: a bug\n")


def test_a_full_disk_ends_nothing(log_to: Callable[[TextIO], Any]) -> None:
    file = Path("/dev/full").open("w")  # noqa: SIM115
    log = log_to(file)
    log.info("lost")
    log.error("lost too")
    with suppress(OSError):
        file.close()
    log.info("the file is closed")
