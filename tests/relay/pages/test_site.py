"""The answers expected here were given by derper v1.102.0, where not noted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from relay.derp.session import SessionStatistics
from relay.derp.switch import SwitchStatistics
from relay.front.router import FrontStatistics
from relay.pages.access import DebugAccess
from relay.pages.bootstrap_dns import BootstrapDns
from relay.pages.home import STYLE_PATH, STYLE_SHEET
from relay.pages.metrics import Metrics
from relay.pages.page import Request, Response
from relay.pages.site import Site
from relay.stun import StunStatistics

STRANGER = ("192.0.2.1", 1234)
OPERATOR = ("127.0.0.1", 1234)
ERROR = {
    "Content-Type": "text/plain; charset=utf-8",
    "X-Content-Type-Options": "nosniff",
}
BROWSER = {
    "Content-Security-Policy": (
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; "
        "base-uri 'self'; block-all-mixed-content; object-src 'none'"
    ),
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
DEBUG = BROWSER | {
    "Content-Security-Policy": BROWSER["Content-Security-Policy"]
    + "; style-src 'self' 'unsafe-inline'"
}
HTML = {"Content-Type": "text/html; charset=utf-8"}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}


def make(
    switch: SwitchStatistics | None = None,
    *,
    home: str = "",
    serves_derp: bool = True,
    dev: bool = False,
) -> Site:
    statistics = switch or SwitchStatistics()
    dns = BootstrapDns(())
    return Site(
        metrics=Metrics(
            switch=lambda: statistics,
            sessions=SessionStatistics(),
            front=FrontStatistics(),
            stun=StunStatistics(),
            bootstrap_dns=dns.statistics,
            version="1.2.3",
        ),
        bootstrap_dns=dns,
        access=DebugAccess(),
        home=home,
        hostname="relay.example",
        switch_name="python",
        serves_derp=serves_derp,
        dev=dev,
        machine=lambda: "host",
    )


def request(
    target: str,
    method: str = "GET",
    *,
    remote: tuple[str, int] | None = STRANGER,
    tls: bool = False,
    headers: dict[str, str] | None = None,
) -> Request:
    path, _, query = target.partition("?")
    given = {"host": "x.example:81"} | (headers or {})
    return Request(
        method,
        target,
        path,
        query,
        tuple((k.encode(), v.encode("latin-1")) for k, v in given.items()),
        remote,
        tls,
    )


def check(
    response: Response, status: int, headers: dict[str, str], body: bytes | None = None
) -> None:
    assert response.status == status
    assert dict(response.headers) == headers
    assert len(response.headers) == len(headers)
    if body is not None:
        assert response.body == body


@pytest.mark.parametrize(
    "path", ["/derp/probe", "/derp/latency-check", "/%64erp/probe"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probe(path: str, method: str) -> None:
    response = make().answer(request(path, method))
    check(response, 200, {"Access-Control-Allow-Origin": "*"}, b"")


@pytest.mark.parametrize("method", ["PUT", "POST", "OPTIONS", "get"])
def test_bogus_probe(method: str) -> None:
    response = make().answer(request("/derp/probe", method))
    check(response, 405, ERROR, b"bogus probe method\n")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "CONNECT"])
def test_derp_wants_an_upgrade(method: str) -> None:
    response = make().answer(request("/derp", method))
    check(response, 426, ERROR, b"DERP requires connection upgrade\n")


def test_derp_disabled() -> None:
    site = make(serves_derp=False)
    check(site.answer(request("/derp")), 404, ERROR, b"derp server disabled\n")
    assert site.answer(request("/derp/probe")).status == 200
    assert b"disabled" in site.answer(request("/")).body
    assert b"disabled" not in make().answer(request("/")).body


@pytest.mark.parametrize(
    ("challenge", "response"),
    [
        (None, None),
        ("", None),
        ("ts_x.y:Z-1", "response ts_x.y:Z-1"),
        ("a" * 64, "response " + "a" * 64),
        ("a" * 65, None),
        ("a b", None),
        ("a\u00fc", None),
        ("a\n", None),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_generate_204(challenge: str | None, response: str | None, method: str) -> None:
    headers = {} if challenge is None else {"x-tailscale-challenge": challenge}
    expected = {
        "Cache-Control": "no-cache, no-store, must-revalidate, no-transform, max-age=0"
    }
    if response is not None:
        expected["X-Tailscale-Response"] = response
    site, asked = make(), request("/generate_204", method, headers=headers)
    check(site.answer(asked), 204, expected, b"")
    check(site.answer_helper(asked), 204, expected, b"")


def test_robots() -> None:
    response = make().answer(request("/robots.txt", "POST"))
    check(response, 200, BROWSER | TEXT, b"User-agent: *\nDisallow: /\n")


@pytest.mark.parametrize(
    "target", ["/", "/derp/", "/derp/probe/", "/derp%2fprobe", "/generate_204/", "/x?y"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "get"])
def test_home_page_is_everywhere_else(target: str, method: str) -> None:
    response = make().answer(request(target, method))
    check(response, 200, BROWSER | HTML)
    assert response.body.startswith(b"<!DOCTYPE html>")
    assert b"/debug/" not in response.body


def test_home_page_tells_the_operator_more() -> None:
    assert b"/debug/" in make().answer(request("/", remote=OPERATOR)).body


def test_home_page_has_a_style_sheet() -> None:
    """Not derper's: it has no style."""
    response = make().answer(request(STYLE_PATH))
    assert response.body == STYLE_SHEET.encode()
    assert dict(response.headers)["Content-Type"].startswith("text/css")
    assert dict(response.headers)["Content-Security-Policy"]


def test_blank_home() -> None:
    check(make(home="blank").answer(request("/")), 200, BROWSER | HTML, b"")


def test_home_elsewhere() -> None:
    site = make(home="https://example.com/x?y=1&z")
    location = {"Location": "https://example.com/x?y=1&z"}
    link = b'<a href="https://example.com/x?y=1&amp;z">Found</a>.\n\n'
    check(site.answer(request("/a")), 302, BROWSER | HTML | location, link)
    check(site.answer(request("/", "POST")), 302, BROWSER | location, b"")
    assert site.answer(request("/robots.txt")).status == 200


@pytest.mark.parametrize("query", ["", "?q=a"])
def test_bootstrap_dns_without_names(query: str) -> None:
    response = make().answer(request("/bootstrap-dns" + query))
    check(response, 200, BROWSER | {"Content-Type": "application/json"}, b"")
    assert response.close


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
@pytest.mark.parametrize("helper", [False, True])
def test_paths_are_cleaned_by_a_redirect(method: str, helper: bool) -> None:
    site = make()
    answer = site.answer_helper if helper else site.answer
    response = answer(request("//derp?a=b", method))
    assert response.status == 307
    assert dict(response.headers)["Location"] == "/derp?a=b"


def test_debug_without_slash() -> None:
    response = make().answer(request("/debug?x=1"))
    location = {"Location": "/debug/?x=1"}
    check(
        response,
        307,
        HTML | location,
        b'<a href="/debug/?x=1">Temporary Redirect</a>.\n\n',
    )


@pytest.mark.parametrize("name", ["", "vars", "varz", "check", "nope", "a/b"])
def test_debug_pages_are_closed_to_strangers(name: str) -> None:
    for asked in (
        request(f"/debug/{name}"),
        request(f"/debug/{name}", remote=OPERATOR, headers={"x-forwarded-for": "1"}),
        request(f"/debug/{name}", remote=None),
    ):
        check(make().answer(asked), 403, ERROR, b"debug access denied\n")


def test_dev_mode_says_how_to_get_in() -> None:
    site = make(dev=True)
    hint = b"debug access denied; to permit access, set TS_ALLOW_DEBUG_IP=192.0.2.1\n"
    check(site.answer(request("/debug/varz")), 403, ERROR, hint)
    check(site.answer(request("/debug/")), 403, ERROR, b"debug access denied\n")


def test_debug_index() -> None:
    response = make().answer(request("/debug/", remote=OPERATOR))
    check(response, 200, BROWSER | HTML)
    for text in (b"relay.example", b"1.2.3", b"python", b"host", b"/debug/varz"):
        assert text in response.body


@pytest.mark.parametrize("name", ["nope", "vars/", "a/b"])
def test_debug_page_that_is_not_there(name: str) -> None:
    response = make().answer(request(f"/debug/{name}", remote=OPERATOR))
    check(response, 404, ERROR, b"404 page not found\n")


def test_debug_metrics() -> None:
    site = make()
    varz = site.answer(request("/debug/varz", remote=OPERATOR))
    check(
        varz,
        200,
        DEBUG | {"Content-Type": "text/plain; charset=utf-8"},
    )
    assert b"\nderp_current_connections 0\n" in varz.body
    variables = site.answer(request("/debug/vars", remote=OPERATOR))
    check(variables, 200, DEBUG | {"Content-Type": "application/json; charset=utf-8"})
    assert json.loads(variables.body)["derp"]["accepts"] == 0


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_debug_check(method: str) -> None:
    asked = request("/debug/check", method, remote=OPERATOR)
    check(make().answer(asked), 200, DEBUG | TEXT, b"derp.Server ConsistencyCheck okay")
    wrong = make(SwitchStatistics(current_connections=2, queued_bytes=-1))
    check(
        wrong.answer(asked),
        500,
        DEBUG | TEXT,
        b"connections = 2 != 0 of 0 keys, queued bytes = -1\n",
    )


def test_odd_targets() -> None:
    site = make()
    check(site.answer(request("*", "OPTIONS")), 200, {}, b"")
    check(site.answer(request("*")), 400, {}, b"")
    assert site.answer(request("*")).close
    for target in ("x", "", "/%zz", "/%4"):
        response = site.answer(request(target))
        check(response, 400, TEXT, b"400 Bad Request")
        assert response.close


def test_connect() -> None:
    site = make()
    for target in ("x.example:443", "/derp"):
        response = site.answer(request(target, "CONNECT", tls=True))
        check(response, 403, ERROR, b"CONNECT not enabled\n")
    not_found = site.answer(request("x.example:443", "CONNECT"))
    check(not_found, 404, ERROR, b"404 page not found\n")
    check(
        site.answer_helper(request("x.example:443", "CONNECT")),
        404,
        ERROR,
        b"404 page not found\n",
    )


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/", "https://x.example:81/"),
        ("/a/b?x=1;2", "https://x.example:81/a/b?x=1;2"),
        ("/derp", "https://x.example:81/derp"),
        ("/robots.txt", "https://x.example:81/robots.txt"),
        ("/a%2fb/%c3%bc", "https://x.example:81/a%2fb/%c3%bc"),
    ],
)
def test_helper_sends_to_https(target: str, location: str) -> None:
    site = make()
    link = f'<a href="{location}">Found</a>.\n\n'.encode()
    check(site.answer_helper(request(target)), 302, HTML | {"Location": location}, link)
    check(
        site.answer_helper(request(target, "HEAD")),
        302,
        HTML | {"Location": location},
        b"",
    )
    check(site.answer_helper(request(target, "POST")), 400, ERROR, b"Use HTTPS\n")


def test_helper_sends_the_operator_to_debug() -> None:
    response = make().answer_helper(request("/", remote=OPERATOR))
    assert dict(response.headers)["Location"] == "https://x.example:81/debug/"


def test_helper_serves_debug_itself() -> None:
    site = make()
    check(
        site.answer_helper(request("/debug/check", remote=OPERATOR)), 200, DEBUG | TEXT
    )
    assert site.answer_helper(request("/debug/check")).status == 403
    assert site.answer_helper(request("/debug")).status == 307
    # A prefix of the text, not of the path.
    check(site.answer_helper(request("/debugx")), 200, BROWSER | HTML)


@given(
    target=st.text(st.characters(max_codepoint=255), max_size=20),
    method=st.sampled_from(["GET", "HEAD", "POST", "CONNECT", "OPTIONS", "x"]),
    tls=st.booleans(),
)
def test_any_target_has_an_answer(target: str, method: str, tls: bool) -> None:
    site = make()
    for answer in (site.answer, site.answer_helper):
        response = answer(request("/" + target, method, remote=OPERATOR, tls=tls))
        assert 200 <= response.status < 500
        for name, value in response.headers:
            (name + value).encode("latin-1")
