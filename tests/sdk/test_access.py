from __future__ import annotations

import pytest

from tailnet.errors import ConfigError
from tailnet.sdk.access import Access


@pytest.mark.parametrize(
    ("url", "parts", "tidied"),
    [
        ("https://coder.test", ("https", "coder.test", 443, ""), "https://coder.test"),
        ("coder.test", ("https", "coder.test", 443, ""), "https://coder.test"),
        ("http://coder.test/", ("http", "coder.test", 80, ""), "http://coder.test"),
        (
            "http://127.0.0.1:3000",
            ("http", "127.0.0.1", 3000, ""),
            "http://127.0.0.1:3000",
        ),
        (
            "https://[2001:db8::1]:8443/a/b/",
            ("https", "2001:db8::1", 8443, "/a/b"),
            "https://[2001:db8::1]:8443/a/b",
        ),
        (
            "https://Coder.Test:443",
            ("https", "coder.test", 443, ""),
            "https://coder.test",
        ),
    ],
)
def test_urls(url: str, parts: tuple[str, str, int, str], tidied: str) -> None:
    access = Access.parse(url, "token")
    assert (access.scheme, access.host, access.port, access.prefix) == parts
    assert access.url == tidied
    assert "token" not in repr(access)


@pytest.mark.parametrize(
    "url",
    ["", "ftp://coder.test", "https://", "https://a:b", "https://me:pw@coder.test",
     "https://coder.test?x=1", "https://coder.test#x", "https://[::1"],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="server's URL"):
        Access.parse(url)


def test_host_header() -> None:
    assert Access.parse("https://coder.test:8443").authority == "coder.test:8443"
    assert Access.parse("http://[::1]").authority == "[::1]"
