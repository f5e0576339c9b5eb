"""The tests mirror the tree: who looks for the test of a module finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.modules import ROOT, modules


def own_modules() -> list[Path]:
    return [
        path
        for path in [*modules("tailnet"), *modules("relay")]
        # Migrations are alembic's to load; test_migrate runs them all.
        if path.stem not in {"__init__", "__main__"} and "migrations" not in path.parts
    ]


def mirror(path: Path) -> Path:
    """Where the test of a module is: the library's part is the root."""
    folder = path.parent
    if folder.parts[0] == "tailnet":
        folder = Path(*folder.parts[1:])
    return Path("tests") / folder / f"test_{path.name}"


@pytest.mark.parametrize("path", own_modules(), ids=str)
def test_module_has_its_test(path: Path) -> None:
    assert (ROOT / mirror(path)).exists(), mirror(path)
