from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from relay.pages.page import Request
from relay.pages.paths import (
    clean_path,
    path_segments,
    query_value,
    redirect,
    redirect_to_path,
    split_target,
)


def request(target: str = "/", method: str = "GET") -> Request:
    return Request(method=method, target=target, path=target)


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/", "/"),
        ("//", "/"),
        ("//x", "/x"),
        ("///x//y", "/x/y"),
        ("/x/", "/x/"),
        ("/x//", "/x/"),
        ("/./x/", "/x/"),
        ("/x/..", "/"),
        ("/x/../", "/"),
        ("/..//../derp", "/derp"),
        ("/a/../derp/probe", "/derp/probe"),
        ("/a%2f..%2fb//c", "/a%2f..%2fb/c"),
        ("/%2e%2e/x", "/%2e%2e/x"),
    ],
)
def test_clean_path(path: str, clean: str) -> None:
    assert clean_path(path) == clean


@given(path=st.text("/.a%2f", max_size=12).map(lambda text: "/" + text))
def test_clean_path_is_clean_and_stays_below_the_root(path: str) -> None:
    clean = clean_path(path)
    assert clean_path(clean) == clean
    assert clean.startswith("/")
    assert not clean.startswith("//")
    assert not {".", ".."} & set(clean.split("/"))


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("/", ("",)),
        ("/derp", ("derp",)),
        ("/derp/", ("derp", "")),
        ("/%64erp/probe", ("derp", "probe")),
        ("/derp%2fprobe", ("derp/probe",)),
        ("/%zz", None),
        ("/a%", None),
        ("/a%4", None),
        ("/%C3%BC", ("\u00c3\u00bc",)),
    ],
)
def test_path_segments(path: str, segments: tuple[str, ...] | None) -> None:
    assert path_segments(path) == segments


def test_target_is_split() -> None:
    assert split_target(request("/a?b?c")) == ("/a", "b?c")
    assert split_target(request("/a")) == ("/a", "")


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("", ""),
        ("q=", ""),
        ("q=a&q=b", "a"),
        ("x=1&q=a%20b+c", "a b c"),
        ("&".join(["q=a"] * 1000), ""),
    ],
)
def test_query_value(query: str, value: str) -> None:
    assert query_value(query, "q") == value


# The answers that follow were given by derper itself.


@pytest.mark.parametrize(
    ("target", "path", "query", "location"),
    [
        ("//x", "/x", "", "/x"),
        ("/a/../derp/probe?x=1", "/derp/probe", "x=1", "/derp/probe?x=1"),
        ("/a%2f..%2fb//c", "/a%2f..%2fb/c", "", "/a%252f..%252fb/c"),
        ("//a%20b?q=%20;x", "/a%20b", "q=%20;x", "/a%2520b?q=%20;x"),
    ],
)
def test_redirect_of_the_mux(target: str, path: str, query: str, location: str) -> None:
    response = redirect_to_path(request(target), path, query)
    assert response.status == 307
    assert dict(response.headers)["Location"] == location
    assert response.body == f'<a href="{location}">Temporary Redirect</a>.\n\n'.encode()


def test_redirect_escapes() -> None:
    location = "https://x.example/a<b>\"c'&\u00fc"
    response = redirect(request(), location, 302)
    assert dict(response.headers)["Location"] == "https://x.example/a<b>\"c'&%fc"
    assert response.body == (
        b'<a href="https://x.example/a&lt;b&gt;&#34;c&#39;&amp;%fc">Found</a>.\n\n'
    )


def test_only_get_gets_a_link() -> None:
    head = redirect(request(method="HEAD"), "/x", 302)
    assert (dict(head.headers).get("Content-Type"), head.body) == (
        "text/html; charset=utf-8",
        b"",
    )
    post = redirect(request(method="POST"), "/x", 302)
    assert (dict(post.headers), post.body) == ({"Location": "/x"}, b"")
