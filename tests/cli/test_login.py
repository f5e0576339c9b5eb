from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tailnet.cli.login import Login, check_url, login_file, resolve_login
from tests.cli.program import Program, usage_error

TOKEN = "ABCDEFGHIJ-abcdefghijklmnopqrstuv"
URL = "https://coder.example.com"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program and this process keep a login."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "tailnet" / "login.json"


def keep(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


# -- which server, which token --------------------------------------------


def test_order(config: Path) -> None:
    coder = {"CODER_URL": "http://coder", "CODER_SESSION_TOKEN": "t-coder"}
    ours = {"TAILNET_URL": "http://ours", "TAILNET_SESSION_TOKEN": "t-ours"}
    keep(config, '{"url":"http://kept","token":"t-kept"}')
    assert resolve_login(environ={}) == Login("http://kept", "t-kept")
    assert resolve_login(environ=coder) == Login("http://coder", "t-coder")
    both = {**coder, **ours}
    assert resolve_login(environ=both) == Login("http://ours", "t-ours")
    assert resolve_login("http://a", "t", environ=both) == Login("http://a", "t")
    # Each for itself, and an empty variable is none.
    mixed = {**coder, "TAILNET_SESSION_TOKEN": "t-ours", "TAILNET_URL": ""}
    assert resolve_login(environ=mixed) == Login("http://coder", "t-ours")
    assert resolve_login(token="t", environ={}) == Login("http://kept", "t")


def test_kept_token_goes_to_its_server_only(config: Path) -> None:
    keep(config, '{"url":"http://kept","token":"t-kept"}')
    assert resolve_login("http://kept/", environ={}) == Login("http://kept", "t-kept")
    for other in ("http://kept:81", "https://kept", "http://kept/path"):
        with usage_error() as caught:
            resolve_login(other, environ={})
        assert f"no token for {other}" in caught[0]


def test_without_any(config: Path) -> None:
    with usage_error() as caught:
        resolve_login(environ={})
    assert "tailnet login URL" in caught[0]
    with usage_error() as caught:
        resolve_login(URL, environ={})
    assert f"run tailnet login {URL}" in caught[0]


def test_environment_is_enough_when_the_file_is_broken(config: Path) -> None:
    keep(config, "{")
    environ = {"TAILNET_URL": URL, "TAILNET_SESSION_TOKEN": TOKEN}
    assert resolve_login(environ=environ) == Login(URL, TOKEN)


@pytest.mark.parametrize("url", [URL, f"{URL}:8443/", "http://[::1]:3000/sub/path/"])
def test_urls_of_servers(url: str) -> None:
    assert check_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "coder.example.com",
        "localhost:3000",
        "ftp://host",
        "http://",
        "http://:80",
        "http://user:secret@host",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://host/?a=b",
        "http://host/#x",
        "http://ho st",
        "http://host\n",
        "http://[::1",
    ],
)
def test_what_is_no_url_of_a_server(url: str) -> None:
    with usage_error() as caught:
        check_url(url)
    assert "looks like https://" in caught[0]
    assert "secret" not in caught[0]


def test_secret_does_not_show() -> None:
    assert TOKEN not in repr(Login(URL, TOKEN))


# -- the command ----------------------------------------------------------


def test_login_is_kept_for_its_owner_alone(program: Program, config: Path) -> None:
    assert login_file() == config
    text = program.text("login", f"{URL}/", "--token", TOKEN, "--no-check")
    assert URL in text
    assert TOKEN not in text
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
    assert json.loads(config.read_text()) == {"url": URL, "token": TOKEN}
    assert resolve_login(environ={}) == Login(URL, TOKEN)
    # Another replaces it.
    shown = program.json("login", "http://b", "--token", "t", "--no-check")
    assert shown == {"url": "http://b", "file": str(config)}
    assert resolve_login(environ={}) == Login("http://b", "t")


def test_token_from_standard_input_or_environment(
    program: Program, config: Path
) -> None:
    ran = program.run("login", URL, "--no-check", stdin=f" {TOKEN}\r\nmore\n")
    assert ran.status == 0
    assert resolve_login(environ={}).token == TOKEN
    environ: dict[str, str | None] = {"CODER_URL": URL, "CODER_SESSION_TOKEN": "t-env"}
    Program(program.data_dir, environ).text("login", "--no-check")
    assert resolve_login(environ={}) == Login(URL, "t-env")


def test_login_that_cannot_be(program: Program, config: Path) -> None:
    message = program.error("login", URL, "--no-check", status=2)
    assert "no token: give --token" in message
    for wrong in ("a b", "ü", "a\x1b"):
        message = program.error("login", URL, "--token", wrong, status=2)
        assert "characters that no token has" in message
        assert wrong not in message
    assert "which server" in program.error("login", "--token", "t", status=2)
    message = program.error("login", "host", "--token", "t", status=2)
    assert "looks like https://" in message
    assert not config.exists()


def test_files_that_cannot_be_used(program: Program, config: Path) -> None:
    config.mkdir(parents=True)
    login = ("login", URL, "--token", "t", "--no-check")
    assert f"cannot write {config}" in program.error(*login, status=1)
    config.rmdir()
    for content in ("", "{", "[]", '{"url":"x","token":"t"}', '{"url":"http://x"}'):
        keep(config, content)
        with pytest.raises(Exception, match="is broken: remove it and log in again"):
            resolve_login(environ={})
    config.unlink()
    config.mkdir()
    with pytest.raises(Exception, match="cannot read"):
        resolve_login(environ={})


# -- trying the token -----------------------------------------------------


@contextmanager
def server(status: int) -> Iterator[tuple[str, list[str]]]:
    """A server that answers thus; its URL, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers['Coder-Session-Token']}")
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}", asked
        finally:
            listener.shutdown()
            thread.join()


def test_token_is_tried_first(program: Program, config: Path) -> None:
    with server(200) as (url, asked):
        program.text("login", url, "--token", TOKEN)
    assert asked == [f"/api/v2/workspaceagents/connection {TOKEN}"]
    assert resolve_login(environ={}) == Login(url, TOKEN)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "does not know this token"),
        (403, "does not know this token"),
        (404, "answered 404: is it a tailnet or Coder server?"),
        (302, "answered 302: is it"),
    ],
)
def test_token_that_does_not_work_is_not_kept(
    program: Program, config: Path, status: int, text: str
) -> None:
    with server(status) as (url, asked):
        message = program.error("login", url, "--token", TOKEN, status=1)
    assert text in message
    assert len(asked) == 1
    assert not config.exists()


def test_server_that_is_not_there(program: Program, config: Path) -> None:
    with server(200) as (url, _):
        pass
    message = program.error("login", url, "--token", TOKEN, status=1)
    assert f"cannot reach {url}: " in message
    assert "--no-check" in message
    assert not config.exists()
