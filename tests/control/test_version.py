"""Versions: which are spoken, and what the others are told."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from tailnet.control.version import CURRENT, check_version, parse_version
from tailnet.errors import VersionError


@pytest.mark.parametrize("minor", range(12))
def test_spoken(minor: int) -> None:
    check_version(f"2.{minor}")


# Texts of Coder's server, with our number in them.
REFUSED = {
    "1.0": "version 1.0 is no longer supported",
    "0.9": "version 0.9 is no longer supported",
    "2.12": "server is at version 2.11, behind requested minor version 2.12",
    "2.99": "server is at version 2.11, behind requested minor version 2.99",
    "3.0": "server is at version 2.11, behind requested major version 3.0",
    "two": "invalid version string: two",
    "2": "invalid version string: 2",
    "": "invalid version string: ",
    "2.0.0": "invalid version string: 2.0.0",
    "x.1": "invalid major version: x.1",
    "2.": "invalid minor version: 2.",
    "2.1_0": "invalid minor version: 2.1_0",
    "2. 1": "invalid minor version: 2. 1",
    "2.\u0661": "invalid minor version: 2.\u0661",  # a digit, but not Go's
    "2.9223372036854775808": "invalid minor version: 2.9223372036854775808",
}


@pytest.mark.parametrize(("text", "error"), REFUSED.items())
def test_refused(text: str, error: str) -> None:
    with pytest.raises(VersionError, match=f"^{re.escape(error)}$"):
        check_version(text)


def test_current() -> None:
    assert CURRENT == (2, 11)


@given(st.text())
def test_any_text(text: str) -> None:
    try:
        major, minor = parse_version(text)
    except VersionError:
        return
    assert text.count(".") == 1
    assert isinstance(major, int)
    assert isinstance(minor, int)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_round_trip(major: int, minor: int) -> None:
    assert parse_version(f"{major}.{minor}") == (major, minor)
