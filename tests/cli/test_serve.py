"""The command, with a server that only notes what it is told.

What the real one does is shown where it is: here it is the command line, the
ready line, signals and exit status.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relay.serve_flags import SERVE_FLAGS
from relay.serve_settings import ServeSettings
from tailnet.cli.serve import serve
from tailnet.errors import ConfigError

ROOT = Path(__file__).parents[2]
TIMEOUT = 30

# A whole program: the command with a server that notes what it is told.
PROGRAM = """
import sys, types
from contextlib import asynccontextmanager
import trio

class Server:
    def __init__(self, settings):
        self.addresses = {"http": (settings.http.host, settings.http.port or 4321)}
        self.access_url = str(settings.access_url_at(http_port=4321))
        self.switch_name = "python"
        self.stopping = trio.Event()

    def stop(self):
        print("stop", file=sys.stderr, flush=True)
        self.stopping.set()

    def reload(self):
        print("reload", file=sys.stderr, flush=True)

    async def wait_stopping(self):
        await self.stopping.wait()

@asynccontextmanager
async def open_server(settings):
    yield Server(settings)
    with trio.move_on_after(settings.drain_timeout):
        await trio.sleep(settings.queue_packets)
    print("drained", file=sys.stderr, flush=True)

sys.modules["relay.server"] = module = types.ModuleType("relay.server")
module.open_server = open_server

from tailnet.cli.serve import serve
serve()
"""


# What the command gave to the server, latest last.
SEEN: list[ServeSettings] = []


@pytest.fixture(autouse=True)
def fake_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("TAILNET_", "CODER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    @asynccontextmanager
    async def open_server(settings: ServeSettings) -> AsyncIterator[None]:
        if settings.http is not None and settings.http.port == 1:
            raise ConfigError("cannot listen on port 1")
        SEEN.append(settings)
        raise ConfigError("seen")
        yield

    module = types.ModuleType("relay.server")
    module.open_server = open_server  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "relay.server", module)
    # What the command does to the process stays out of other tests.
    for name in ("configure_logging", "prepare_process"):
        monkeypatch.setattr(f"relay.program.{name}", lambda *_: None)


def invoke(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(serve, arguments, env=environ)


def settings_of(*arguments: str, **environ: str) -> ServeSettings:
    done = invoke(*arguments, **environ)
    assert done.stderr.splitlines()[-1] == "tailnet serve: seen"
    return SEEN.pop()


def test_help_has_every_flag_with_variables_and_default() -> None:
    done = invoke("--help", COLUMNS="200")
    assert done.exit_code == 0
    for flag in SERVE_FLAGS:
        assert f"--{flag.name} " in done.output
    assert "TAILNET_BLOCK_DIRECT_CONNECTIONS" in done.output
    assert "CODER_BLOCK_DIRECT" in done.output
    assert "127.0.0.1:3443" in done.output


def test_no_flags() -> None:
    settings = settings_of()
    assert str(settings.http) == "127.0.0.1:3000"
    assert settings.derp_map.serve_embedded


@pytest.mark.parametrize(
    ("arguments", "blocked"),
    [
        ([], False),
        (["--block-direct-connections"], True),
        (["--block-direct-connections=true"], True),
        (["--block-direct-connections=false"], False),
        (["--block-direct-connections", "--derp-force-websockets"], True),
        (["--derp-force-websockets=0", "--block-direct-connections"], True),
    ],
)
def test_bool_flags(arguments: list[str], *, blocked: bool) -> None:
    assert settings_of(*arguments).block_direct is blocked


def test_lists_and_values() -> None:
    settings = settings_of(
        "--derp-server-stun-addresses=a:1,b:2",
        "--derp-server-stun-addresses",
        "c:3",
        "--http-address",
        ":8080",
        "--access-url=http://a",
    )
    assert settings.derp_map.stun_servers == (("a", 1), ("b", 2), ("c", 3))
    assert str(settings.http) == ":8080"


def test_sources(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("queue-packets = 1\nqueue-bytes = 1\napi-rate-limit = 1\n")
    settings = settings_of(
        f"--config={file}",
        "--queue-packets=3",
        TAILNET_QUEUE_PACKETS="2",
        TAILNET_QUEUE_BYTES="2",
    )
    assert (settings.queue_packets, settings.queue_bytes) == (3, 2)
    assert settings.api_rate_limit == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--http-address"], "--http-address"),
        (["extra"], "extra"),
        (["--http-address=x"], "--http-address"),
        (["--http-address="], "--http-address"),
        (["--access-url=a"], "--access-url"),
        (["--tls-enable"], "--tls-cert-file"),
        (["--derp-server-enable=false"], "no DERP node"),
        (["--derp-config-url=http://a", "--derp-config-path=b"], "--derp-config-url"),
        # Only the server itself finds out.
        (["--http-address=127.0.0.1:1"], "cannot listen"),
    ],
)
def test_wrong_setting_is_one_line_and_status_2(
    arguments: list[str], word: str
) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("tailnet serve: ")
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_import_of_the_command_brings_no_server() -> None:
    """Other commands share its program, and should not wait for it."""
    code = (
        "import sys, tailnet.cli.serve; "
        "print([m for m in sys.modules if m.split('.')[0] == 'relay'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert done.stdout == "[]\n"


# -- whole programs -----------------------------------------------------------


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        try:
            yield program
        finally:
            program.kill()


def next_line(program: subprocess.Popen[str]) -> str:
    assert program.stderr is not None
    return program.stderr.readline()


def read_ready(program: subprocess.Popen[str]) -> Any:
    while '"ready"' not in (line := next_line(program)):
        assert line, "it ended"
    return json.loads(line)


def test_ready_line_reload_and_drain() -> None:
    with running("--queue-packets=1", "--drain-timeout=10ms") as program:
        assert next_line(program) == (
            "tailnet serve ready http=127.0.0.1:3000 url=http://127.0.0.1:4321 "
            "switch=python\n"
        )
        program.send_signal(signal.SIGHUP)
        assert next_line(program) == "reload\n"
        program.send_signal(signal.SIGTERM)
        assert next_line(program) == "stop\n"
        assert next_line(program) == "drained\n"
        assert program.wait(TIMEOUT) == 0


def test_json_and_second_signal() -> None:
    flags = ("--log-format=json", "--drain-timeout=1h", "--http-address=:0")
    with running(*flags) as program:
        warning = json.loads(next_line(program))
        assert warning["level"] == "warning"
        assert "--access-url" in warning["event"]
        assert read_ready(program) == {
            "event": "ready",
            "url": "http://127.0.0.1:4321",
            "switch": "python",
            "addresses": {"http": ["", 4321]},
        }
        program.send_signal(signal.SIGINT)
        assert next_line(program) == "stop\n"
        program.send_signal(signal.SIGTERM)
        assert next_line(program) == ""
        assert program.wait(TIMEOUT) == 0
