from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import pytest

from tailnet.cli.output import (
    OutputFormat,
    builtins,
    print_fields,
    print_json,
    print_table,
)

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Thing:
    id: UUID
    at: datetime
    format: OutputFormat


THING = Thing(UUID(int=7), TIME, OutputFormat.TEXT)
AS_JSON = {
    "id": "00000000-0000-0000-0000-000000000007",
    "at": "2026-01-02T03:04:05Z",
    "format": "text",
}


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([THING, None, "\x1b ü"])
    out = capsys.readouterr().out
    assert json.loads(out) == [AS_JSON, None, "\x1b ü"]
    assert "\x1b" not in out
    assert out.startswith("[\n  {\n    ")
    assert out.endswith("]\n")
    assert builtins(THING) == AS_JSON


def test_fields(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"a": 1, "longer": True, "none": None, "at": TIME, "empty": ""})
    assert capsys.readouterr().out == (
        "a       1\nlonger  yes\nat      2026-01-02 03:04:05Z\nempty\n"
    )
    print_fields({})
    assert capsys.readouterr().out == ""


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [("x", None), ("long\n\x1b", False)])
    assert capsys.readouterr().out == "A           B\nx           -\nlong\\n\\x1b  no\n"
    print_table(("A", "B"), [])
    assert capsys.readouterr().out == ""
