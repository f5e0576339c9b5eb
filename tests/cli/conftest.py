from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.relay.store.stores import empty_database


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The program, before anything was made."""
    return Program(tmp_path / "data")


@pytest.fixture
def furnished(program: Program) -> Program:
    """The program, with a user, a workspace and an agent."""
    program.data_dir.mkdir()
    (program.data_dir / "tailnet.db").write_bytes(empty_database())
    program.text("user", "create", "alice")
    program.text("workspace", "create", "alice/dev")
    program.text("agent", "create", "alice/dev/main")
    return program
