"""The program ``tailnet``: its commands, its errors, its exit status.

Exit status: 0; 1 if the command failed; 2 if it was called wrongly; 130 after
Ctrl-C. An error is one line on stderr; ``--verbose`` adds where it came from.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from tailnet.cli.agent import agent
from tailnet.cli.command import VERBOSE, Group
from tailnet.cli.debug import debug
from tailnet.cli.derp_map import derp_map
from tailnet.cli.login import login
from tailnet.cli.serve import serve
from tailnet.cli.token import token
from tailnet.cli.user import user
from tailnet.cli.workspace import workspace
from tailnet.errors import ConfigError, InvalidRecordError, TailnetError

__all__ = ("cli", "main", "run")


@click.group(cls=Group)
@click.version_option(package_name="tailnet", prog_name="tailnet")
def cli() -> None:
    """Connect to agents, and run the server that they meet at."""


for command in (agent, debug, derp_map, login, serve, token, user, workspace):
    cli.add_command(command)


def main() -> None:
    """Run the program on the command line, and exit."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run the program.

    Args:
        args: The command line, without the program's name.

    Returns:
        The exit status.
    """
    meta: dict[str, object] = {}
    try:
        context = cli.make_context("tailnet", list(args))
        # Shared with the contexts of the commands below it.
        meta = context.meta
        with context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough. Python would flush it again, and
        # complain, when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (click.ClickException, TailnetError) as exc:
        return _report(exc, verbose=bool(meta.get(VERBOSE)))
    return 0


def _report(exc: click.ClickException | TailnetError, *, verbose: bool) -> int:
    if verbose:
        traceback.print_exception(exc)
    if isinstance(exc, click.exceptions.NoArgsIsHelpError):
        exc.show()
        return exc.exit_code
    if isinstance(exc, click.ClickException):
        name, status = "tailnet", exc.exit_code
        message = exc.format_message().replace("\n", " ").rstrip(".")
        if isinstance(exc, click.UsageError) and exc.ctx is not None:
            name = exc.ctx.command_path
            message += " See" if message.endswith("?") else "; see"
            message += f" {name} --help"
    else:
        # What an argument or setting says is wrong, and trying again is no use.
        name, message = "tailnet", str(exc)
        status = 2 if isinstance(exc, ConfigError | InvalidRecordError) else 1
    click.echo(f"{name}: {message}", err=True)
    return status
