from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from relay.pages.access import DebugAccess
from relay.pages.page import Request
from tailnet.errors import ConfigError


def request(
    ip: str | None,
    *,
    query: str = "",
    method: str = "GET",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Request:
    remote = None if ip is None else (ip, 1234)
    return Request(method, "/debug/", "/debug/", query, headers, remote)


@pytest.mark.parametrize(
    ("ip", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("100.64.0.1", True),
        ("100.127.255.255", True),
        ("100.128.0.0", False),
        ("100.115.92.1", False),
        ("100.115.94.1", True),
        ("fd7a:115c:a1e0::1", True),
        ("fd7a:115c:a1e1::1", False),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
        ("fe80::1%eth0", False),
        ("@", False),
        (None, False),
    ],
)
def test_by_address(ip: str | None, allowed: bool) -> None:
    assert DebugAccess().allows(request(ip)) is allowed


def test_forwarded_requests_are_refused_whoever_sends_them() -> None:
    forwarded = ((b"x-forwarded-for", b"127.0.0.1"),)
    assert not DebugAccess().allows(request("127.0.0.1", headers=forwarded))
    # A proxy that adds a line of its own, behind an empty one of the client.
    both = ((b"x-forwarded-for", b""), *forwarded)
    assert not DebugAccess().allows(request("127.0.0.1", headers=both))
    assert DebugAccess().allows(request("127.0.0.1", headers=((b"via", b"x"),)))


def test_by_environment() -> None:
    access = DebugAccess.from_environment(
        {
            "TS_ALLOW_DEBUG_IP": "192.0.2.7",
            "TS_DEBUG_TRUSTED_CIDRS": " 198.51.100.9/24 ,, 2001:db8::/32",
        }
    )
    assert access.trusted == (
        ipaddress.ip_network("198.51.100.0/24"),
        ipaddress.ip_network("2001:db8::/32"),
    )
    for ip in ("192.0.2.7", "::ffff:192.0.2.7", "198.51.100.1", "2001:db8:1::1"):
        assert access.allows(request(ip))
    for ip in ("192.0.2.8", "198.51.101.1", "2001:db9::1"):
        assert not access.allows(request(ip))
    assert DebugAccess.from_environment({}) == DebugAccess()


@pytest.mark.parametrize(
    "text", ["10.0.0.0", "10.0.0.0/33", "x/8", "10.0.0.0/8/8", "1.2.3.4/255.0.0.0"]
)
def test_bad_prefix_ends_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="TS_DEBUG_TRUSTED_CIDRS"):
        DebugAccess.from_environment({"TS_DEBUG_TRUSTED_CIDRS": f"10.0.0.0/8,{text}"})


def test_by_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(" s\u00fc\u00dfes geheimnis\n")
    access = DebugAccess(key_path=str(path))
    query = "a=b&debugkey=s%C3%BC%C3%9Fes+geheimnis"
    forwarded = ((b"x-forwarded-for", b"1"),)
    assert access.allows(request("192.0.2.1", query=query))
    assert access.allows(request(None, query=query, headers=forwarded))
    assert not access.allows(request("192.0.2.1", query=query, method="POST"))
    assert not access.allows(request("192.0.2.1", query="debugkey=x"))
    path.write_text("new")  # no restart needed
    assert not access.allows(request("192.0.2.1", query=query))
    assert access.allows(request("192.0.2.1", query="debugkey=new"))


@pytest.mark.parametrize("name", ["missing", "", ".", "a\0b"])
def test_unreadable_or_empty_key_opens_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").write_text("\n")
    for path in (str(tmp_path / name) if name else "", str(tmp_path / "empty")):
        access = DebugAccess(key_path=path)
        for query in ("", "debugkey=", "debugkey=%0A", "debugkey=x"):
            assert not access.allows(request("192.0.2.1", query=query))
