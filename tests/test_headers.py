from __future__ import annotations

import pytest
import trio
import trio.testing

from tailnet.errors import ConnectError
from tailnet.headers import HttpHeaders, next_headers

HEADERS = [("A", "b")]


async def slow_headers() -> HttpHeaders:
    await trio.sleep(2)
    return HEADERS


async def test_fixed_asked_for_and_awaited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert await next_headers(HEADERS, timeout=1) == HEADERS
    assert await next_headers(lambda: HEADERS, timeout=1) == HEADERS
    assert await next_headers(slow_headers, timeout=3) == HEADERS
    with pytest.raises(ConnectError, match="no headers within 1 s"):
        await next_headers(slow_headers, timeout=1)


async def test_only_expected_failures_are_failures() -> None:
    def refuse() -> HttpHeaders:
        raise OSError("no such program")

    def fail() -> HttpHeaders:
        raise KeyError("a bug")

    with pytest.raises(ConnectError, match="no headers: no such program"):
        await next_headers(refuse, timeout=1)
    with pytest.raises(KeyError):
        await next_headers(fail, timeout=1)
