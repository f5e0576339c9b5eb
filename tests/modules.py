"""The modules of the project, for the tests of its structure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def modules(package: str) -> list[Path]:
    """All files of a package that people wrote, relative to the project's root."""
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return [path.relative_to(ROOT) for path in found if not is_generated(path)]


def is_generated(path: Path) -> bool:
    """Whether tools/generate_proto.py made the file."""
    return path.stem.endswith("_pb2")


def dotted(path: Path) -> str:
    """The name under which a file is imported."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """All that a file imports, anywhere in it; ``a.b`` for ``from a import b``.

    The second part may be a module or a name in one; who compares prefixes
    need not know.
    """
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")
