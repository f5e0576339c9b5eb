"""The committed code is what the .proto files say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.modules import ROOT
from tools.generate_proto import NAMES, PROTO_FOLDER, generate

GENERATED = [f"{name}_pb2{suffix}" for name in NAMES for suffix in (".py", ".pyi")]


def test_generating_anew_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / PROTO_FOLDER).mkdir(parents=True)
    generate(tmp_path)
    made = sorted(path.name for path in (tmp_path / PROTO_FOLDER).iterdir())
    assert made == sorted(GENERATED)
    for name in made:
        fresh = (tmp_path / PROTO_FOLDER / name).read_text()
        assert fresh == (ROOT / PROTO_FOLDER / name).read_text(), "run make proto"


def test_every_proto_file_is_generated() -> None:
    found = sorted(path.stem for path in (ROOT / PROTO_FOLDER).glob("*.proto"))
    assert found == sorted(NAMES)


def test_a_fault_ends_the_program(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="protoc ended with status"):
        generate(tmp_path / "missing")


def test_the_runtime_that_we_ask_for_can_run_the_code() -> None:
    """Generated code refuses a protobuf that is older than its compiler."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = [d for d in project["dependencies"] if d.startswith("protobuf")]
    for name in NAMES:
        code = (ROOT / PROTO_FOLDER / f"{name}_pb2.py").read_text()
        version = re.search(r"^# Protobuf Python Version: (\S+)$", code, re.MULTILINE)
        assert version is not None
        assert wanted == f"protobuf>={version[1]}"
