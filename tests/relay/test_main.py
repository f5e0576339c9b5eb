"""The program, from outside: what it prints, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TIMEOUT = 30


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *flags],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    key = ("-c", str(folder / "relay.key"))
    program = subprocess.Popen(
        [sys.executable, "-m", "relay", "-stun=false", *key, *flags],
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        try:
            yield program
        finally:
            program.kill()


def read_until(program: subprocess.Popen[str], wanted: str) -> str:
    assert program.stderr is not None
    for line in program.stderr:
        if wanted in line:
            return line
    raise AssertionError(f"it ended without {wanted!r}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_version_names_the_switch() -> None:
    done = run("-version")
    assert done.returncode == 0
    assert done.stdout.startswith("tailnet-relay ")
    assert "switch: python" in done.stdout


def test_help_lists_flags() -> None:
    done = run("-help")
    assert done.returncode == 0
    assert "-verify-client-url" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["-no-such-flag"], "no-such-flag"),
        (["-http-port", "many"], "http-port"),
        (["-a", "127.0.0.1:443"], "-certmode manual"),
        (["-mesh-with", "other"], "mesh"),
        (["-a", "nowhere"], "nowhere"),
    ],
)
def test_wrong_setting_is_one_line_and_status_2(flags: list[str], word: str) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ready_line_sigterm_and_the_key_that_stays(tmp_path: Path) -> None:
    port = free_port()
    keys = set()
    for _ in range(2):
        with running(tmp_path, "-a", f"127.0.0.1:{port}") as program:
            ready = read_until(program, "tailnet-relay ready")
            assert ready == f"tailnet-relay ready derp=127.0.0.1:{port} switch=python\n"
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(b"GET /derp HTTP/1.1\r\nHost: a\r\nUpgrade: DERP\r\n\r\n")
                keys.add(sock.recv(4096).partition(b"Derp-Public-Key: ")[2][:64])
            program.send_signal(signal.SIGTERM)
            assert program.wait(TIMEOUT) == 0
    assert len(keys) == 1


def test_json_log_and_sighup(tmp_path: Path) -> None:
    port = free_port()
    flags = ("-log-format", "json", "-certmode", "manual", "-hostname", "127.0.0.1")
    certs = ("-certdir", str(tmp_path), "-http-port", "-1")
    with running(tmp_path, "-a", f"127.0.0.1:{port}", *flags, *certs) as program:
        ready = json.loads(read_until(program, '"ready"'))
        assert ready["event"] == "ready"
        assert ready["switch"] == "python"
        assert ready["addresses"]["derp"] == ["127.0.0.1", port]
        program.send_signal(signal.SIGHUP)
        assert json.loads(read_until(program, "certificate reloaded"))["expires"]
        (tmp_path / "127.0.0.1.crt").write_text("broken", encoding="ascii")
        program.send_signal(signal.SIGHUP)
        line = json.loads(read_until(program, "old certificate"))
        assert line["level"] == "error"
        program.send_signal(signal.SIGTERM)
        assert program.wait(TIMEOUT) == 0


def test_second_sigterm_does_not_wait(tmp_path: Path) -> None:
    port = free_port()
    flags = ("-a", f"127.0.0.1:{port}", "-drain-timeout", "60s")
    with running(tmp_path, *flags) as program:
        read_until(program, "tailnet-relay ready")
        # Half-open, so that the first signal has something to wait for.
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(b"GET /derp HTTP/1.1\r\nHost: a\r\nUpgrade: DERP\r\n\r\n")
            assert sock.recv(9) == b"HTTP/1.1 "
            program.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(0.3)
            program.send_signal(signal.SIGTERM)
            assert program.wait(5) == 0
