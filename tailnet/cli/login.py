"""``tailnet login``, and which server and token the other commands use.

In this order, each for itself: the options ``--url`` and ``--token``, the
environment (``TAILNET_URL``, ``TAILNET_SESSION_TOKEN``, then ``CODER_URL``,
``CODER_SESSION_TOKEN``), what the last login kept. A token that was kept goes
to the server that it was kept for, and to no other.

API for other commands: :func:`server_options` and :func:`resolve_login`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import click
import msgspec
import platformdirs

from tailnet.cli.command import Command, output_option
from tailnet.cli.output import OutputFormat, print_fields, print_json

__all__ = (
    "Login",
    "check_url",
    "login",
    "login_file",
    "resolve_login",
    "server_options",
)

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])

URL_VARIABLES: Final = ("TAILNET_URL", "CODER_URL")
TOKEN_VARIABLES: Final = ("TAILNET_SESSION_TOKEN", "CODER_SESSION_TOKEN")

# A request that both this server and Coder's answer to whoever has an API key.
PROBE_PATH: Final = "/api/v2/workspaceagents/connection"
PROBE_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Login:
    """A server, and the API key for it.

    Attributes:
        url: Of the server, without a slash at its end.
        token: The API key.
    """

    url: str
    token: str = field(repr=False)


def server_options(function: FunctionT) -> FunctionT:
    """Add ``--url`` and ``--token``; the command gives both to resolve_login."""
    token = click.option(
        "--token", metavar="TOKEN", help="API key (env TAILNET_SESSION_TOKEN)."
    )
    url = click.option("--url", metavar="URL", help="The server (env TAILNET_URL).")
    return url(token(function))


def resolve_login(
    url: str | None = None,
    token: str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Login:
    """Find out which server to use, and with which token.

    Args:
        url: The value of ``--url``.
        token: The value of ``--token``.
        environ: The environment.

    Raises:
        UsageError: There is no server or token, or the URL is none.
    """
    url = url or _first(environ, URL_VARIABLES)
    token = token or _first(environ, TOKEN_VARIABLES)
    if url is None or token is None:
        kept = _read_login()
        if url is None and kept is not None:
            url = kept.url
        if url is None:
            raise click.UsageError(
                "which server? Run: tailnet login URL; or give --url"
            )
        if token is None and kept is not None and kept.url == check_url(url):
            token = kept.token
        if token is None:
            raise click.UsageError(
                f"no token for {url}: run tailnet login {url}, or set "
                f"{TOKEN_VARIABLES[0]}"
            )
    return Login(check_url(url), token)


def check_url(url: str) -> str:
    """A server's URL as it is kept: without a slash at its end.

    Raises:
        UsageError: It is not the URL of a server.
    """
    try:
        parts = urlsplit(url)
        is_good = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.query or parts.fragment or "@" in parts.netloc)
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        is_good = False
    if not is_good:
        raise click.UsageError(
            "the URL of a server looks like https://coder.example.com, without user, "
            "query or fragment"
        )
    return url.rstrip("/")


def login_file() -> Path:
    """Where a login is kept, such as ``~/.config/tailnet/login.json``."""
    return platformdirs.user_config_path("tailnet", appauthor=False) / "login.json"


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _read_login() -> Login | None:
    path = login_file()
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Login)
        return Login(check_url(kept.url), kept.token)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise click.ClickException(f"cannot read {path}: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, click.UsageError) as exc:
        raise click.ClickException(
            f"{path} is broken: remove it and log in again"
        ) from exc


def _write_login(kept: Login) -> Path:
    from relay.keyfile import write_atomically

    path = login_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.encode(kept), mode=0o600)
    except OSError as exc:
        raise click.ClickException(f"cannot write {path}: {exc.strerror}") from exc
    return path


@click.command(cls=Command)
@click.argument("url", required=False)
@click.option(
    "--token",
    metavar="TOKEN",
    help="API key; default: env TAILNET_SESSION_TOKEN, or one line of standard input.",
)
@click.option(
    "--check/--no-check", default=True, help="Try the token on the server first."
)
@output_option
def login(
    url: str | None, token: str | None, *, check: bool, output: OutputFormat
) -> None:
    """Keep the server URL and a token for it, for the other commands."""
    url = url or _first(os.environ, URL_VARIABLES)
    if url is None:
        raise click.UsageError("which server? Give its URL")
    url = check_url(url)
    token = token or _first(os.environ, TOKEN_VARIABLES) or _ask_for_token()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise click.UsageError("the token holds characters that no token has")
    wanted = Login(url, token)
    if check:
        _try(wanted)
    path = _write_login(wanted)
    if output is OutputFormat.JSON:
        print_json({"url": url, "file": str(path)})
    else:
        print_fields({"logged in to": url, "kept in": path})


def _ask_for_token() -> str:
    if sys.stdin.isatty():
        text = click.prompt("Token", hide_input=True, err=True)
    else:
        text = sys.stdin.readline()
    token = str(text).strip()
    if not token:
        raise click.UsageError(
            f"no token: give --token, set {TOKEN_VARIABLES[0]}, or write it to "
            "standard input"
        )
    return token


def _try(wanted: Login) -> None:
    import httpx2

    try:
        response = httpx2.get(
            wanted.url + PROBE_PATH,
            headers={"Coder-Session-Token": wanted.token},
            timeout=PROBE_TIMEOUT,
        )
    except httpx2.HTTPError as exc:
        reason = str(exc).partition("\n")[0] or type(exc).__name__
        raise click.ClickException(
            f"cannot reach {wanted.url}: {reason}; --no-check logs in all the same"
        ) from exc
    if response.status_code in {401, 403}:
        raise click.ClickException(f"{wanted.url} does not know this token")
    if response.status_code != 200:
        raise click.ClickException(
            f"{wanted.url} answered {response.status_code}: is it a tailnet or Coder "
            "server?"
        )
