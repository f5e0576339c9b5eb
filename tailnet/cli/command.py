"""What all commands have in common: options, and kinds of arguments.

A family of commands is a :class:`Group`; its commands then take ``--verbose``
wherever it stands, and ``-h``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import click

from tailnet.cli.output import OutputFormat

__all__ = (
    "VERBOSE",
    "Command",
    "DurationType",
    "Group",
    "PathOfNames",
    "UuidType",
    "data_dir_option",
    "output_option",
)

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])

# The key of ``Context.meta`` that says that errors are to show their trace.
VERBOSE: Final = "tailnet.verbose"


def _note_verbose(context: click.Context, _: click.Parameter, *, value: bool) -> None:
    if value:
        context.meta[VERBOSE] = True


class Command(click.Command):
    """A command with the option that all have."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {}).setdefault(
            "help_option_names", ["-h", "--help"]
        )
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--verbose"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=lambda c, p, v: _note_verbose(c, p, value=v),
                help="Show where an error comes from.",
            )
        )


class Group(Command, click.Group):
    """A family of commands, all of the class above."""

    command_class: type[click.Command] | None = Command
    group_class: type[click.Group | type] | None = type


def output_option(function: FunctionT) -> FunctionT:
    """Add ``-o``; the command gets ``output``, an OutputFormat."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice([*OutputFormat], case_sensitive=False),
        default=OutputFormat.TEXT.value,
        callback=lambda _context, _parameter, value: OutputFormat(value),
        help="For people, or for programs.",
    )(function)


def data_dir_option(function: FunctionT) -> FunctionT:
    """Add ``--data-dir``; the command gets ``data_dir``, a path or None."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        envvar="TAILNET_DATA_DIR",
        metavar="DIR",
        help="The server's data directory (env TAILNET_DATA_DIR; default: the "
        "user's own).",
    )(function)


class UuidType(click.ParamType[UUID]):
    """A UUID in its usual text form."""

    name = "uuid"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> UUID:
        """Parse it, or say what one looks like."""
        parsed = value if isinstance(value, UUID) else _parse_uuid(str(value))
        if parsed is None:
            self.fail(
                f"{value!r} is not a UUID such as 0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f0",
                param,
                ctx,
            )
        return parsed


def _parse_uuid(text: str) -> UUID | None:
    """The UUID in a text of the usual form; None if it is something else."""
    try:
        parsed = UUID(text)
    except ValueError:
        return None
    # Without this, "{...}", "urn:uuid:..." and stray hyphens would do.
    return parsed if str(parsed) == text.lower() else None


class PathOfNames(click.ParamType[tuple[str, ...] | UUID]):
    """Names with slashes between, such as OWNER/WORKSPACE; or a UUID."""

    def __init__(self, form: str, *, or_uuid: bool = False) -> None:
        """Make the type of one argument.

        Args:
            form: What it looks like, such as ``OWNER/WORKSPACE``.
            or_uuid: A UUID will do as well.
        """
        self.name = form.lower()
        self.form = form
        self.or_uuid = or_uuid

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...] | UUID:
        """Split it, or say what it should look like."""
        if not isinstance(value, str):  # a value that was converted already
            return value  # type: ignore[no-any-return]
        if self.or_uuid and (parsed := _parse_uuid(value)) is not None:
            return parsed
        names = tuple(value.split("/"))
        if len(names) != self.form.count("/") + 1 or not all(names):
            wanted = f"{self.form} or a UUID" if self.or_uuid else self.form
            self.fail(f"{value!r} is not {wanted}", param, ctx)
        return names


class DurationType(click.ParamType[timedelta]):
    """A length of time: a number and one of ``s``, ``m``, ``h``, ``d``."""

    name = "duration"

    _FORM: Final = re.compile(r"([0-9]{1,9})([smhd])")
    _UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    _LONGEST: Final = timedelta(days=36500)

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> timedelta:
        """Parse it, or say what one looks like."""
        if isinstance(value, timedelta):
            return value
        found = self._FORM.fullmatch(str(value))
        if found is None:
            self.fail(
                f"{value!r} is not a duration such as 90m, 12h or 30d", param, ctx
            )
        duration = timedelta(**{self._UNITS[found[2]]: int(found[1])})
        if not timedelta() < duration <= self._LONGEST:
            self.fail(f"{value!r} is not between 1s and 36500d", param, ctx)
        return duration
