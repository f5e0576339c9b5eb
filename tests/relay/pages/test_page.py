from __future__ import annotations

from relay.pages.page import Request, go_error


def test_first_value_of_a_header() -> None:
    request = Request(
        "GET", "/", "/", headers=((b"a", b"1"), (b"b", b"\xfc"), (b"a", b"2"))
    )
    assert request.header("a") == "1"
    assert request.header("b") == "\u00fc"
    assert request.header("c") == ""


def test_error_is_as_go_writes_it() -> None:
    response = go_error(405, "bogus probe method")
    assert response.status == 405
    assert dict(response.headers) == {
        "Content-Type": "text/plain; charset=utf-8",
        "X-Content-Type-Options": "nosniff",
    }
    assert response.body == b"bogus probe method\n"
