"""Each module says in ``__all__`` what is public, and says the truth."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import relay
import tailnet
from tests.modules import ROOT, dotted, modules, parsed


def code_modules() -> list[Path]:
    """Modules with names of their own: no packages, no ``__main__``.

    Nor migrations, which alembic loads, and nobody else can.
    """
    return [
        path
        for path in [*modules("tailnet"), *modules("relay")]
        if path.stem not in {"__init__", "__main__"} and "migrations" not in path.parts
    ]


def sort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest: ruff's RUF022, isort's order."""
    if name.isupper():
        return 0, name
    return (1 if name[0].isupper() else 2), name


def declared(path: Path) -> object:
    """``__all__`` as it is written in the file."""
    for node in parsed(path).body:
        if isinstance(node, ast.Assign) and [
            target.id for target in node.targets if isinstance(target, ast.Name)
        ] == ["__all__"]:
            return ast.literal_eval(node.value)
    return None


@pytest.mark.parametrize("path", code_modules(), ids=str)
def test_all_is_a_sorted_tuple(path: Path) -> None:
    names = declared(path)
    assert isinstance(names, tuple)
    assert names == tuple(sorted(set(names), key=sort_key))


@pytest.mark.parametrize("path", code_modules(), ids=str)
def test_all_names_what_there_is(path: Path) -> None:
    module = importlib.import_module(dotted(path))
    for name in module.__all__:
        assert not name.startswith("_")
        assert hasattr(module, name), name


@pytest.mark.parametrize("path", code_modules(), ids=str)
def test_public_functions_and_classes_are_named(path: Path) -> None:
    names = declared(path)
    assert isinstance(names, tuple)
    defined = {
        node.name
        for node in parsed(path).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
    }
    assert defined <= set(names)


def test_the_library_exports_what_it_imports() -> None:
    public = {
        name
        for name, value in vars(tailnet).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and name != "annotations"
    }
    assert set(tailnet.__all__) == public
    assert tailnet.__all__ == tuple(sorted(tailnet.__all__, key=sort_key))


def test_what_the_library_exports_is_public_where_it_comes_from() -> None:
    for node in parsed(Path("tailnet/__init__.py")).body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert alias.asname is None
                assert alias.name in module.__all__, f"{node.module}.{alias.name}"


def test_every_error_is_exported() -> None:
    from tailnet import errors

    assert set(errors.__all__) <= set(tailnet.__all__)


def named_for_type_checkers() -> dict[str, str]:
    """What ``relay`` exports, and the module that each name is from."""
    found: dict[str, str] = {}
    for node in ast.walk(parsed(Path("relay/__init__.py"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("relay."):
            assert all(alias.asname is None for alias in node.names)
            found |= {alias.name: str(node.module) for alias in node.names}
    return found


def test_the_server_exports_what_type_checkers_know() -> None:
    known = named_for_type_checkers()
    assert relay.__all__ == tuple(sorted(known, key=sort_key))
    assert set(relay.__all__) <= set(dir(relay))
    for name, home in known.items():
        module = importlib.import_module(home)
        assert name in module.__all__, f"{home}.{name}"
        assert getattr(relay, name) is getattr(module, name)


def test_the_server_exports_nothing_else() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'open_nothing'"):
        _ = relay.open_nothing  # type: ignore[attr-defined]


def test_the_server_is_loaded_when_it_is_used() -> None:
    """The commands of operators import the store, and start fast."""
    code = """
import sys
import relay.store.sql_store
print([name for name in ("relay.app", "relay.server") if name in sys.modules])
from relay import open_server
print("relay.server" in sys.modules, open_server.__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["[]", "True relay.server"]
