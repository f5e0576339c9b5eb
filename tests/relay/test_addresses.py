from __future__ import annotations

import pytest

from relay.addresses import ListenAddress
from tailnet.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":443", "", 443),
        ("192.0.2.1:80", "192.0.2.1", 80),
        ("[::1]:443", "::1", 443),
        ("[fe80::1%eth0]:443", "fe80::1%eth0", 443),
        ("localhost:http", "localhost", 80),
        (":HTTPS", "", 443),
        (":", "", 0),
        (":0", "", 0),
    ],
)
def test_listen_addresses(text: str, host: str, port: int) -> None:
    assert ListenAddress.from_text(text) == ListenAddress(host, port)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "missing port in address"),
        ("443", "missing port in address"),
        ("[::1]", "missing port in address"),
        ("::1:443", "too many colons in address"),
        ("[::1:443", "missing ']' in address"),
        ("[::1]x:443", "too many colons in address"),
        ("a]:443", "unexpected ']' in address"),
        (":65536", "invalid port"),
        (":-1", "unknown port '-1'"),
        (":nonsense", "unknown port 'nonsense'"),
    ],
)
def test_bad_listen_addresses(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^{reason.replace('[', '.')}$"):
        ListenAddress.from_text(text)


def test_ports_of_images_without_services(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, protocol: str) -> int:
        raise OSError("service/proto not found")

    monkeypatch.setattr("socket.getservbyname", fail)
    assert ListenAddress.from_text(":https").port == 443
    assert ListenAddress.from_text(":http").port == 80
