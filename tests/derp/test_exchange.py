"""One request, one head; what of a refusal's body comes soon.

How bodies are framed, and what is no answer, test_login.py asks through the
whole login.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tailnet.derp.exchange import exchange, read_body
from tailnet.errors import RemoteProtocolError


async def test_what_comes_behind_the_head_is_kept() -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(b"HTTP/1.1 101 Go\r\nUpgrade: x\r\n")
    await far.send_all(b"\r\nnew protocol")
    head = await exchange(near, b"GET /x HTTP/1.1\r\n\r\n")
    assert (head.status, head.reason, head.rest) == (101, "Go", b"new protocol")
    assert await far.receive_some() == b"GET /x HTTP/1.1\r\n\r\n"


async def test_no_answer() -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_eof()
    with pytest.raises(RemoteProtocolError, match="without an answer"):
        await exchange(near, b"")


async def test_a_body_is_cut_and_does_not_wait_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(b"HTTP/1.1 400 x\r\nContent-Length: 99\r\n\r\nbody")
    head = await exchange(near, b"")
    assert await read_body(near, head, max_len=3, timeout=1) == b"bod"
    assert await read_body(near, head, max_len=50, timeout=2) == b"body"
    assert trio.current_time() == 2


async def test_a_body_that_comes_after_its_head(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(b"HTTP/1.1 400 x\r\nContent-Length: 4\r\n\r\n")
    head = await exchange(near, b"")
    assert head.rest == b""
    await far.send_all(b"body")
    assert await read_body(near, head, max_len=50, timeout=2) == b"body"
    assert trio.current_time() == 0
