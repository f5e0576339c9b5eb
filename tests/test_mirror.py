"""The tests mirror the tree: who looks for the test of a module finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.modules import ROOT, modules

# Modules whose test is still to be written. Nothing is to be added.
PENDING = {
    Path("relay") / name
    for name in (
        "app.py",
        "derp/poller.py",
        "derp/session.py",
        "front/http.py",
        "front/listeners.py",
        "front/router.py",
        "front/tls.py",
        "front/wire.py",
        "memory.py",
    )
}


def own_modules() -> list[Path]:
    return [
        path
        for path in [*modules("tailnet"), *modules("relay")]
        if path.stem not in {"__init__", "__main__"}
    ]


def mirror(path: Path) -> Path:
    """Where the test of a module is: the library's part is the root."""
    folder = path.parent
    if folder.parts[0] == "tailnet":
        folder = Path(*folder.parts[1:])
    return Path("tests") / folder / f"test_{path.name}"


@pytest.mark.parametrize("path", own_modules(), ids=str)
def test_module_has_its_test(path: Path) -> None:
    exists = (ROOT / mirror(path)).exists()
    if path in PENDING and not exists:
        pytest.skip(f"{mirror(path)} is still to be written")
    assert exists, mirror(path)


def test_lists_name_modules_that_there_are() -> None:
    for path in PENDING:
        assert (ROOT / path).exists(), path


def test_where_tests_are_looked_for() -> None:
    assert mirror(Path("tailnet/derp/frames.py")) == Path("tests/derp/test_frames.py")
    assert mirror(Path("tailnet/keys.py")) == Path("tests/test_keys.py")
    assert mirror(Path("relay/front/tls.py")) == Path("tests/relay/front/test_tls.py")
