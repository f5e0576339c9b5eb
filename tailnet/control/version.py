"""API versions: ``major.minor``, one number for both services.

Coder ``apiversion/apiversion.go``: the same major and no newer minor than ours
is spoken. A newer method is answered as unknown, call by call.
"""

from __future__ import annotations

import re
from typing import Final

from tailnet.errors import VersionError

__all__ = ("CURRENT", "check_version", "parse_version")

# Agents dial with their own newest version; none dials with more than this.
CURRENT: Final = (2, 11)

# strconv.Atoi, on 64 bits.
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,400}")
_INT64: Final = range(-(1 << 63), 1 << 63)


def parse_version(text: str) -> tuple[int, int]:
    """Read a version.

    Raises:
        VersionError: Not two decimal numbers with a dot between them.
    """
    parts = text.split(".")
    if len(parts) != 2:
        raise VersionError(f"invalid version string: {text}")
    major = _integer(parts[0])
    if major is None:
        raise VersionError(f"invalid major version: {text}")
    minor = _integer(parts[1])
    if minor is None:
        raise VersionError(f"invalid minor version: {text}")
    return major, minor


def _integer(text: str) -> int | None:
    if not _INTEGER.fullmatch(text) or (number := int(text)) not in _INT64:
        return None
    return number


def check_version(text: str) -> None:
    """Check that we speak a version.

    Raises:
        VersionError: We do not; Coder's text.
    """
    major, minor = parse_version(text)
    ours = f"server is at version {CURRENT[0]}.{CURRENT[1]}"
    if major > CURRENT[0]:
        raise VersionError(f"{ours}, behind requested major version {text}")
    if major < CURRENT[0]:
        raise VersionError(f"version {text} is no longer supported")
    if minor > CURRENT[1]:
        raise VersionError(f"{ours}, behind requested minor version {text}")
