"""``tailnet serve``: the API, the relay and STUN in one process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

import click

__all__ = ("serve",)


class _Server(Protocol):
    """What the ready line tells of a server."""

    @property
    def addresses(self) -> Mapping[str, tuple[str, int]]: ...

    @property
    def access_url(self) -> str: ...

    @property
    def switch_name(self) -> str: ...


class _ServeCommand(click.Command):
    """A command whose options are the rows of the table of settings.

    The table is read when the command is used: it belongs to the server,
    which the other commands do without.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.params:
            self.params = _options()
        return super().get_params(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as exc:
            _fail(exc.format_message())


def _options() -> list[click.Parameter]:
    from relay.flags import Kind, format_default
    from relay.serve_flags import SERVE_FLAGS, environment_variables

    options: list[click.Parameter] = []
    for flag in SERVE_FLAGS:
        usage = f"{flag.usage} [{', '.join(environment_variables(flag.name))}]"
        if default := format_default(flag):
            usage += f" (default {default})"
        # What is not given is None, or nothing: other sources come then. The
        # texts are read by the table's rules, the same for all sources.
        name = f"--{flag.name}"
        if flag.kind is Kind.BOOL:
            # As Go reads it: alone, or with its value behind "=".
            option = click.Option(
                [name], is_flag=False, flag_value="true", metavar="[BOOL]", help=usage
            )
        else:
            option = click.Option(
                [name],
                metavar=flag.kind.value.upper(),
                multiple=flag.kind is Kind.LIST,
                help=usage,
            )
        options.append(option)
    return options


def _fail(reason: str) -> NoReturn:
    click.echo(f"tailnet serve: {reason}", err=True)
    sys.exit(2)


@click.command(cls=_ServeCommand)
def serve(**given: Any) -> None:
    """Run the server: relay, coordinator and STUN.

    Each setting may also come from the environment or, under the name of its
    flag, from the TOML file of --config; the command line beats the
    environment, which beats the file.

    SIGTERM and SIGINT stop it gracefully, a second one at once. SIGHUP
    reloads certificates, the DERP map and the token of --verify-token-file.
    """
    import structlog
    import trio

    from relay.program import (
        configure_logging,
        prepare_process,
        ready_line,
        run_until_signal,
    )
    from relay.serve_settings import load_serve_settings
    from relay.server import open_server
    from tailnet.errors import ConfigError

    def say_ready(server: _Server) -> None:
        line = ready_line(
            "tailnet serve",
            server.addresses,
            settings.log_format,
            url=server.access_url,
            switch=server.switch_name,
        )
        click.echo(line, err=True)

    try:
        settings = load_serve_settings(_texts(given), os.environ)
        configure_logging(settings.log_format)
        for warning in settings.warnings:
            structlog.get_logger("relay").warning(warning)
        prepare_process()
        trio.run(run_until_signal, open_server(settings), say_ready)
    except ConfigError as exc:
        _fail(str(exc))
    except KeyboardInterrupt:
        sys.exit(130)


def _texts(given: dict[str, Any]) -> dict[str, str]:
    """What the command line has, by name of the flag."""
    texts = {}
    for parameter, value in given.items():
        if isinstance(value, tuple):
            value = ",".join(value) if value else None
        if value is not None:
            texts[parameter.replace("_", "-")] = str(value)
    return texts
