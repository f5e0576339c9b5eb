from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import click
import pytest

from tailnet.cli.command import DurationType, Group, PathOfNames, UuidType
from tests.cli.program import usage_error

ID = UUID("0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f0")


def test_uuids() -> None:
    for text in (str(ID), str(ID).upper()):
        assert UuidType()(text) == ID
    assert UuidType()(ID) == ID
    for text in ("", "x", ID.hex, f"{{{ID}}}", f"urn:uuid:{ID}", f" {ID}"):
        with usage_error() as caught:
            UuidType()(text)
        assert f"{text!r} is not a UUID such as" in caught[0]


def test_paths_of_names() -> None:
    path = PathOfNames("A/B")
    assert path("x/y") == ("x", "y")
    assert path(("x", "y")) == ("x", "y")
    for text in ("", "x", "/", "x/", "/y", "x/y/z", str(ID)):
        with usage_error() as caught:
            path(text)
        assert caught == [f"Invalid value: {text!r} is not A/B"]
    path = PathOfNames("A/B", or_uuid=True)
    assert path(str(ID)) == path(ID) == ID
    with usage_error() as caught:
        path("x")
    assert caught == ["Invalid value: 'x' is not A/B or a UUID"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("90m", 5400), ("2h", 7200), ("1d", 86400)]
)
def test_durations(text: str, seconds: int) -> None:
    assert DurationType()(text) == timedelta(seconds=seconds)
    assert DurationType()(timedelta(seconds=seconds)) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "1", "s", "1w", "-1s", "1.5h", "0d", "36501d", "9" * 99 + "s", "٣s"]
)
def test_what_is_no_duration(text: str) -> None:
    with usage_error() as caught:
        DurationType()(text)
    assert repr(text) in caught[0]


def test_commands_of_a_group_take_its_options() -> None:
    @click.group(cls=Group)
    def outer() -> None:
        pass

    @outer.group("inner")
    def inner() -> None:
        pass

    @inner.command("leaf")
    def leaf() -> None:
        pass

    assert isinstance(inner, Group)
    for command in (outer, inner, leaf):
        names = {name for param in command.params for name in param.opts}
        assert "--verbose" in names
        assert command.context_settings["help_option_names"] == ["-h", "--help"]
