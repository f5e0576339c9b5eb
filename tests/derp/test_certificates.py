"""Pins, names and meta certificates, as Go's client judges them."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from tailnet.derp.certificates import (
    check_certificate_name,
    check_pinned_certificate,
    find_meta_key,
)
from tailnet.errors import RemoteProtocolError
from tests.derp.make_certificates import NOW, make_certificate, make_meta_certificate
from tests.derp.memory_relay import RELAY_KEY

LEAF = make_certificate(dns_names=["derp.test", "*.wild.test"], ips=["192.0.2.1"])
META = make_meta_certificate(RELAY_KEY.public())
PIN = hashlib.sha256(LEAF).hexdigest()


@pytest.mark.parametrize("chain", [[LEAF], [LEAF, META], [META, LEAF]])
def test_the_pinned_certificate_is_taken(chain: list[bytes]) -> None:
    check_pinned_certificate(chain, PIN, server_name="derp.test", now=NOW)


@pytest.mark.parametrize(
    ("chain", "pin", "problem"),
    [
        ([LEAF], "0" * 64, "not the pinned one"),
        ([LEAF], PIN.upper(), "not the pinned one"),  # Go compares text
        ([LEAF], PIN[:-1], "not the pinned one"),
        ([make_certificate("other"), LEAF], PIN, "not the pinned one"),
        ([LEAF, make_certificate("issuer")], PIN, "more than one"),
        ([LEAF, META, LEAF], PIN, "more than one"),
        ([META], hashlib.sha256(META).hexdigest(), "no certificate"),
        ([], PIN, "no certificate"),
        ([b"nonsense"], hashlib.sha256(b"nonsense").hexdigest(), "broken"),
    ],
)
def test_any_other_chain_is_refused(chain: list[bytes], pin: str, problem: str) -> None:
    with pytest.raises(RemoteProtocolError, match=problem):
        check_pinned_certificate(chain, pin, server_name="", now=NOW)


def test_a_pinned_certificate_has_to_be_for_the_name() -> None:
    with pytest.raises(RemoteProtocolError, match=r"derp\.test.*not for derp\.example"):
        check_pinned_certificate([LEAF], PIN, server_name="derp.example", now=NOW)
    # Nothing was asked for in SNI: nothing to compare with.
    check_pinned_certificate([LEAF], PIN, server_name="", now=NOW)


def test_a_pinned_certificate_has_to_be_of_today() -> None:
    day = timedelta(days=1)
    for offset in (-day, timedelta(), day):  # both ends included
        check_pinned_certificate([LEAF], PIN, server_name="", now=NOW + offset)
    with pytest.raises(RemoteProtocolError, match="ended"):
        check_pinned_certificate(
            [LEAF], PIN, server_name="", now=NOW + day + timedelta(seconds=1)
        )
    with pytest.raises(RemoteProtocolError, match="clock"):
        check_pinned_certificate(
            [LEAF], PIN, server_name="", now=NOW - day - timedelta(seconds=1)
        )


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("derp.test", True),
        ("DERP.Test", True),
        ("derp.test.", True),
        ("a.wild.test", True),
        ("192.0.2.1", True),
        ("[192.0.2.1]", True),
        ("other.test", False),
        ("wild.test", False),
        ("a.b.wild.test", False),
        (".wild.test", False),
        ("*.wild.test", False),
        ("192.0.2.2", False),
        ("", False),
    ],
)
def test_names_match_as_in_go(name: str, good: bool) -> None:
    if good:
        check_certificate_name(LEAF, name)
    else:
        with pytest.raises(RemoteProtocolError):
            check_certificate_name(LEAF, name)


def test_a_common_name_is_no_name() -> None:
    with pytest.raises(RemoteProtocolError, match="valid for no name"):
        check_certificate_name(make_certificate("derp.test"), "derp.test")


def test_the_meta_certificate_tells_the_key() -> None:
    assert find_meta_key([LEAF, META]) == RELAY_KEY.public()


@pytest.mark.parametrize(
    "certificate",
    [
        make_meta_certificate(RELAY_KEY.public(), serial=256),
        make_certificate("derpkey" + "0" * 63),
        make_certificate("derpkey" + "0" * 64),
        LEAF,
    ],
)
def test_what_only_looks_like_a_meta_certificate(certificate: bytes) -> None:
    assert find_meta_key([certificate]) is None
    # A whole one behind it still counts.
    assert find_meta_key([certificate, META]) == RELAY_KEY.public()


@given(data=st.binary(max_size=300), cut=st.integers(0, 500))
def test_any_bytes_are_judged_or_refused(data: bytes, cut: int) -> None:
    """Also a certificate with some of its bytes replaced."""
    for der in (data, LEAF[:cut] + data + LEAF[cut + len(data) :]):
        try:
            assert find_meta_key([der]) is None
            check_certificate_name(der, "derp.test")
            check_pinned_certificate([der], PIN, server_name="x", now=NOW)
        except RemoteProtocolError:
            pass
