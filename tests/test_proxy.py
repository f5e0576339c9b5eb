"""Which proxy for what, and the bytes of CONNECT."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tailnet.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from tailnet.proxy import (
    ConnectAnswer,
    ConnectReader,
    Proxy,
    ProxyRules,
    Scheme,
    encode_connect,
)

PROXY = Proxy("proxy.test", 3128)


# -- the proxy's URL --------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy.test:3128", PROXY),
        ("http://proxy.test:3128/", PROXY),
        ("proxy.test:3128", PROXY),
        ("proxy.test", Proxy("proxy.test", 80)),
        ("HTTP://Proxy.Test", Proxy("proxy.test", 80)),
        ("https://proxy.test", Proxy("proxy.test", 443, tls=True)),
        ("https://proxy.test:8443", Proxy("proxy.test", 8443, tls=True)),
        ("http://[2001:db8::1]:8080", Proxy("2001:db8::1", 8080)),
        ("192.0.2.1:8080", Proxy("192.0.2.1", 8080)),
        ("http://me:p%40ss@proxy.test", Proxy("proxy.test", 80, False, "me", "p@ss")),
        ("me@proxy.test:1", Proxy("proxy.test", 1, False, "me", "")),
    ],
)
def test_url(url: str, proxy: Proxy) -> None:
    assert Proxy.parse(url) == proxy


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("socks5://secret@proxy.test", "no support for socks5 proxies"),
        ("http://", "no host name"),
        ("http://secret@:80", "no host name"),
        ("http://secret:x@proxy.test:99999", "not valid"),
        ("http://[secret", "not valid"),
    ],
)
def test_a_bad_url_is_not_quoted(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        Proxy.parse(url)
    assert "secret" not in str(caught.value)


def test_text_without_the_password() -> None:
    proxy = Proxy.parse("https://me:secret@[2001:db8::1]:1")
    assert str(proxy) == "https://[2001:db8::1]:1"
    assert "secret" not in repr(proxy)


# -- choosing ---------------------------------------------------------------


def chosen(
    environment: dict[str, str], scheme: Scheme, host: str, port: int = 443
) -> str | None:
    proxy = ProxyRules.from_environment(environment).proxy_for(scheme, host, port)
    return None if proxy is None else str(proxy)


def test_the_scheme_decides() -> None:
    both = {"HTTP_PROXY": "plain.test:1", "HTTPS_PROXY": "tls.test:2"}
    assert chosen(both, "http", "derp.test") == "http://plain.test:1"
    assert chosen(both, "https", "derp.test") == "http://tls.test:2"
    assert chosen({"HTTP_PROXY": "plain.test"}, "https", "derp.test") is None
    assert chosen({"HTTPS_PROXY": "tls.test"}, "http", "derp.test") is None
    assert chosen({}, "https", "derp.test") is None


def test_capitals_go_first_unless_empty() -> None:
    names = {"HTTPS_PROXY": "big.test:1", "https_proxy": "small.test:1"}
    assert chosen(names, "https", "derp.test") == "http://big.test:1"
    names["HTTPS_PROXY"] = ""
    assert chosen(names, "https", "derp.test") == "http://small.test:1"
    names["no_proxy"] = "derp.test"
    assert chosen(names, "https", "derp.test") is None
    names["NO_PROXY"] = "other.test"
    assert chosen(names, "https", "derp.test") == "http://small.test:1"


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
    ],
)
def test_loopback_is_never_proxied_unless_it_is_said(host: str) -> None:
    assert chosen({"HTTPS_PROXY": "proxy.test"}, "https", host) is None
    always = ProxyRules.always("http://proxy.test:3128")
    for scheme in ("http", "https"):
        assert always.proxy_for(scheme, host, 443) == PROXY


def test_no_rules_no_proxy() -> None:
    assert ProxyRules().proxy_for("https", "derp.test", 443) is None


# golang.org/x/net/http/httpproxy proxy_test.go UseProxyTests, and more.
NO_PROXY = (
    "foobar.com, .barbaz.net, *.star.test,192.168.1.1, 192.168.1.2:81,"
    "192.168.1.3:80, 10.0.0.0/30, 2001:db8::52:0:1, [2001:db8::52:0:2]:443,"
    "[2001:db8::52:0:3]:80, 2002:db8:a::45/64, port.test:444, any.test:,"
    "b\u00fccher.test, , ., :80, 300.1.1.1/8"
)


@pytest.mark.parametrize(
    ("host", "port", "proxied"),
    [
        ("foobar.com", 443, False),
        ("FooBar.com", 443, False),
        ("www.foobar.com", 443, False),
        ("foofoobar.com", 443, True),
        ("foobar.com.br", 443, True),
        ("barbaz.net", 443, True),
        ("www.barbaz.net", 443, False),
        ("foobarbaz.net", 443, True),
        ("star.test", 443, True),
        ("a.b.star.test", 443, False),
        ("192.168.1.1", 443, False),
        ("::ffff:192.168.1.1", 443, False),
        ("192.168.1.2", 81, False),
        ("192.168.1.2", 443, True),
        ("192.168.1.3", 80, False),
        ("192.168.1.4", 443, True),
        ("10.0.0.2", 443, False),
        ("10.0.0.4", 443, True),
        ("2001:db8::52:0:1", 443, False),
        ("2001:db8::52:0:2", 443, False),
        ("2001:db8::52:0:3", 443, True),
        ("2001:db8::52:0:3", 80, False),
        ("2002:db8:a::123", 443, False),
        ("2002:db8:b::1", 443, True),
        ("port.test", 444, False),
        ("port.test", 443, True),
        ("www.port.test", 444, False),
        ("any.test", 1, False),
        ("b\u00fccher.test", 443, False),
        ("xn--bcher-kva.test", 443, False),
        ("example.com", 80, True),
        ("[fe80::1", 443, True),  # no address, no name; not our business here
    ],
)
def test_exceptions(host: str, port: int, proxied: bool) -> None:
    environment = {"HTTPS_PROXY": "proxy.test:3128", "NO_PROXY": NO_PROXY}
    wanted = str(PROXY) if proxied else None
    assert chosen(environment, "https", host, port) == wanted


@pytest.mark.parametrize("text", ["*", "a.test, *", "*,a.test"])
def test_a_star_is_everything(text: str) -> None:
    environment = {"HTTPS_PROXY": "proxy.test", "NO_PROXY": text}
    assert chosen(environment, "https", "derp.test") is None
    assert chosen(environment, "https", "192.0.2.1") is None


def test_a_wrong_setting_counts_where_it_would_be_used() -> None:
    environment = {"HTTPS_PROXY": "socks5://proxy.test", "NO_PROXY": "derp.test"}
    assert chosen(environment, "https", "derp.test") is None
    with pytest.raises(ConfigError, match="HTTPS_PROXY: there is no support for socks"):
        chosen(environment, "https", "other.test")
    with pytest.raises(ConfigError):
        ProxyRules.always("socks5://proxy.test")


def test_in_a_cgi_program_http_proxy_may_be_an_attack() -> None:
    """CVE-2016-5385: a request's header ``Proxy`` becomes HTTP_PROXY."""
    environment = {"HTTP_PROXY": "evil.test", "HTTPS_PROXY": "good.test"}
    environment["REQUEST_METHOD"] = "GET"
    with pytest.raises(ConfigError, match="CGI"):
        chosen(environment, "http", "derp.test")
    assert chosen(environment, "https", "derp.test") == "http://good.test:80"
    assert chosen(environment, "http", "localhost") is None


@given(text=st.text(max_size=60), host=st.text(min_size=1, max_size=30))
def test_any_list_of_exceptions_can_be_asked(text: str, host: str) -> None:
    rules = ProxyRules(https="proxy.test", no_proxy=text)
    assert rules.proxy_for("https", host, 443) in (None, Proxy("proxy.test", 80))


# -- asking -----------------------------------------------------------------


def test_request() -> None:
    assert encode_connect(PROXY, "derp.test", 443) == (
        b"CONNECT derp.test:443 HTTP/1.1\r\n"
        b"Host: derp.test:443\r\n"
        b"User-Agent: tailnet\r\n\r\n"
    )
    assert b"CONNECT [2001:db8::1]:80 HTTP" in encode_connect(PROXY, "2001:db8::1", 80)


def test_request_with_credentials() -> None:
    proxy = Proxy.parse("http://Aladdin:open%20sesame@proxy.test")
    # RFC 7617 2.
    assert b"\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n" in (
        encode_connect(proxy, "derp.test", 443)
    )
    no_password = Proxy.parse("http://test@proxy.test")
    assert b" Basic dGVzdDo=\r\n" in encode_connect(no_password, "derp.test", 443)


def test_a_name_that_does_not_fit_is_our_mistake() -> None:
    for host in ("a\r\nEvil: 1", "a b", "b\u00fccher.test"):
        with pytest.raises(LocalProtocolError):
            encode_connect(PROXY, host, 443)


def read(*chunks: bytes) -> ConnectAnswer | None:
    reader = ConnectReader()
    for chunk in chunks:
        answer = reader.receive_data(chunk)
        if answer is not None:
            return answer
    return None


@pytest.mark.parametrize(
    ("wire", "answer"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ConnectAnswer(200, "OK", b"")),
        (b"HTTP/1.0 200 x y\r\nA: b\r\n\r\n", ConnectAnswer(200, "x y", b"")),
        (b"HTTP/1.1 200\r\n\r\nhello", ConnectAnswer(200, "", b"hello")),
        # RFC 9110 9.3.6: no body behind a 2xx, whatever the head says.
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            ConnectAnswer(200, "OK", b"hello"),
        ),
        (
            b"HTTP/1.1 407 Who?\r\nContent-Length: 2\r\n\r\nno",
            ConnectAnswer(407, "Who?", b"no"),
        ),
        (
            b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 204 y\r\n\r\n",
            ConnectAnswer(204, "y", b""),
        ),
    ],
)
def test_answers(wire: bytes, answer: ConnectAnswer) -> None:
    assert read(wire) == answer
    # Byte by byte, the head ends before the rest comes.
    pieces = [wire[i : i + 1] for i in range(len(wire))]
    one_by_one = read(*pieces)
    assert one_by_one is not None
    assert (one_by_one.status, one_by_one.rest) == (answer.status, b"")
    assert answer.connected is (answer.status < 300)


@pytest.mark.parametrize(
    ("wire", "problem"),
    [
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 20_000, "16384 bytes|not HTTP"),
        (b"HTTP/1.1 100 x\r\n\r\n" * 2_000, "more than 16384 bytes"),
        (b"HTTP/1.1 20", "closed without an answer"),
    ],
)
def test_answers_that_are_none(wire: bytes, problem: str) -> None:
    with pytest.raises(RemoteProtocolError, match=problem):
        read(wire, b"")


@given(wire=st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_an_error(wire: bytes) -> None:
    for data in (wire, b"HTTP/1.1 200 OK\r\n" + wire):
        try:
            read(data)
        except RemoteProtocolError:
            pass
