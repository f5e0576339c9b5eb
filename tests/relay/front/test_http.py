"""HTTP heads in, small answers out."""

from __future__ import annotations

import pytest

from relay.front.http import (
    MAX_BODY_LEN,
    MAX_BODY_PIECES,
    HttpError,
    HttpReader,
    HttpRequest,
    encode_answer,
    encode_switch,
)
from tailnet.derp.upgrade import MAX_HEAD_LEN

GET = b"GET /x?y=1 HTTP/1.1\r\nHost: a\r\n\r\n"


def read(data: bytes) -> HttpRequest | None:
    reader = HttpReader()
    reader.receive_data(data)
    return reader.next_request()


def refused(data: bytes) -> HttpError:
    with pytest.raises(HttpError) as caught:
        read(data)
    return caught.value


def test_request() -> None:
    head = read(GET)
    assert head == HttpRequest("GET", "/x?y=1", ((b"host", b"a"),), b"1.1", True)


def test_byte_by_byte() -> None:
    reader = HttpReader()
    for byte in GET[:-1]:
        reader.receive_data(bytes([byte]))
        assert reader.next_request() is None
    reader.receive_data(GET[-1:])
    assert reader.next_request() is not None


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.1", "Connection: x, Close\r\n", False),
        ("1.0", "", False),
        ("1.0", "Connection: keep-alive\r\n", True),
    ],
)
def test_keep_alive(version: str, connection: str, keep_alive: bool) -> None:
    head = read(f"GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n".encode())
    assert head is not None
    assert head.keep_alive == keep_alive


def test_body_is_read_and_thrown_away() -> None:
    reader = HttpReader()
    reader.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
    assert reader.next_request() is None
    reader.receive_data(b"dy" + GET)
    first = reader.next_request()
    assert first is not None
    assert first.method == "POST"
    reader.next_cycle()
    second = reader.next_request()
    assert second is not None
    assert second.method == "GET"


def test_bytes_behind_the_request_are_kept() -> None:
    reader = HttpReader()
    reader.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: DERP\r\n\r\n\2\0DERP")
    assert reader.next_request() is not None
    assert reader.take_rest() == b"\2\0DERP"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n\x00\x01garbage\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * MAX_HEAD_LEN, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * MAX_HEAD_LEN + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * MAX_HEAD_LEN + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
)
def test_errors(data: bytes, status: int) -> None:
    error = refused(data)
    assert error.status == status
    assert error.answer().startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nConnection: close\r\n" in error.answer()


def test_body_is_bounded() -> None:
    head = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {1 << 30}\r\n\r\n".encode()
    assert read(head + bytes(MAX_BODY_LEN)) is None
    assert refused(head + bytes(MAX_BODY_LEN + 1)).status == 413


def test_who_waits_for_100_continue_gets_the_answer_at_once() -> None:
    head = read(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    assert head is not None
    assert not head.keep_alive


def request(method: str = "GET", version: bytes = b"1.1") -> HttpRequest:
    return HttpRequest(method, "/", (), version, True)


def lines(answer: bytes) -> tuple[str, list[str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return first, [line for line in rest if not line.startswith("Date: ")], body


def test_answer() -> None:
    answer = encode_answer(200, [("A", "b")], b"hi", request=request(), keep_alive=True)
    assert lines(answer) == ("HTTP/1.1 200 OK", ["A: b", "Content-Length: 2"], b"hi")
    answer = encode_answer(404, [], b"no", request=request("HEAD"), keep_alive=False)
    first, rest, body = lines(answer)
    assert first == "HTTP/1.1 404 Not Found"
    assert rest == ["Content-Length: 2", "Connection: close"]
    assert body == b""


def test_no_content_has_no_length() -> None:
    answer = encode_answer(204, [], b"", request=request(), keep_alive=True)
    assert lines(answer) == ("HTTP/1.1 204 No Content", [], b"")


def test_old_client_is_answered_in_its_version() -> None:
    old = request(version=b"1.0")
    for keep_alive, connection in ((False, []), (True, ["Connection: keep-alive"])):
        answer = encode_answer(200, [], b"", request=old, keep_alive=keep_alive)
        expected = ("HTTP/1.0 200 OK", ["Content-Length: 0", *connection], b"")
        assert lines(answer) == expected


def test_switching_protocols() -> None:
    head, date, rest = encode_switch([("Upgrade", "websocket")]).partition(b"Date: ")
    assert head == b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
    assert date
    assert rest.endswith(b" GMT\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n",
    ],
)
def test_two_lengths_end_the_connection(head: bytes) -> None:
    request = read(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert request is None or not request.keep_alive


def test_body_in_many_small_chunks_is_refused() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert refused(head + b"1\r\nx\r\n" * (MAX_BODY_PIECES + 1)).status == 413


def test_body_may_come_in_any_pieces() -> None:
    """Segments were counted as chunks: a 413 for a body of 65 bytes."""
    length = MAX_BODY_PIECES * 2
    for head, body in (
        (f"Content-Length: {length}", b"x" * length),
        ("Transfer-Encoding: chunked", b"80\r\n" + b"x" * 0x80 + b"\r\n0\r\n\r\n"),
    ):
        reader = HttpReader()
        reader.receive_data(f"POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode())
        for byte in body:
            assert reader.next_request() is None
            reader.receive_data(bytes([byte]))
        assert reader.next_request() is not None
