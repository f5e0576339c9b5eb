"""Requests that once ended the relay, or might: found by fuzzing."""

from __future__ import annotations

import socket

import pytest

from relay.front.router import Front

BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\n"
    b"\r\n"
    b"400 Bad Request"
)


async def answer_to(data: bytes) -> bytes:
    """What a port without pages answers to ``data``, up to its hanging up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname(), timeout=10)
        near, _ = listener.accept()
    near.setblocking(False)
    with far:
        far.sendall(data)
        far.shutdown(socket.SHUT_WR)
        await Front(derp=None).serve(near)
        answer = b""
        while chunk := far.recv(65536):
            answer += chunk
        return answer


@pytest.mark.parametrize(
    "target", [b"http://[", b"http://[x]/derp", b"http://[::1", b"x://]"]
)
async def test_broken_uri_is_a_bad_request(target: bytes) -> None:
    """urlsplit raises ValueError for these; it went up into the nursery."""
    request = b"GET " + target + b" HTTP/1.1\r\nHost: relay.example\r\n\r\n"
    assert await answer_to(request) == BAD_REQUEST


@pytest.mark.parametrize(
    "target", [b"http://relay.example/x", b"/x?u=http://[", b"//["]
)
async def test_odd_targets_are_looked_up(target: bytes) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: relay.example\r\n\r\n"
    answer = await answer_to(request)
    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
