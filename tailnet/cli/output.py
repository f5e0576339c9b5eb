"""What commands print: for people, or with ``-o json`` for programs.

JSON is one value, indented, with times as RFC 3339 in UTC. Text is lines and
columns; characters that could drive the terminal are shown as escapes, since
some of it comes from agents.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
import msgspec

__all__ = ("OutputFormat", "builtins", "print_fields", "print_json", "print_table")


class OutputFormat(enum.StrEnum):
    """The values of ``-o``."""

    TEXT = "text"
    JSON = "json"


def builtins(value: object) -> Any:
    """A value, such as a dataclass, as what JSON is made of."""
    return msgspec.to_builtins(value)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values, one a line; values that are None are left out."""
    shown = {name: value for name, value in fields.items() if value is not None}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        click.echo(f"{name:<{width}}  {_cell(value)}".rstrip())


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns with their headers; nothing at all without rows."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        return
    table = [list(headers), *cells]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        columns = zip(row, widths, strict=True)
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in columns).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%SZ")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in str(value)
    )
