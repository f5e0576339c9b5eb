"""HTTP headers of the caller's own, fixed or asked for each time."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio

from tailnet.errors import ConnectError

__all__ = ("HeaderSource", "HttpHeaders", "next_headers")

HttpHeaders: TypeAlias = Sequence[tuple[str, str]]

# Headers, or what gives them anew for each attempt to connect.
HeaderSource: TypeAlias = (
    HttpHeaders | Callable[[], HttpHeaders] | Callable[[], Awaitable[HttpHeaders]]
)


async def next_headers(
    source: HeaderSource,
    *,
    timeout: float,  # noqa: ASYNC109 - what it ends is a ConnectError like others
) -> HttpHeaders:
    """The headers for the next attempt to connect.

    Args:
        source: If it raises ConnectError or OSError, there are none this time.
        timeout: Seconds.

    Raises:
        ConnectError: There are none.
    """
    if not callable(source):
        return source
    with trio.move_on_after(timeout):
        try:
            headers = source()
            if inspect.isawaitable(headers):
                headers = await headers
        except OSError as exc:
            raise ConnectError(f"no headers: {exc}") from exc
        return headers
    raise ConnectError(f"no headers within {timeout} s")
