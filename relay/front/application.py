"""What answers requests: a page, or a program that takes the connection over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from relay.front.wire import Wire
from relay.pages.page import Request, Response

__all__ = ("Application", "Takeover", "application")


@dataclass(frozen=True, slots=True)
class Takeover:
    """The request turns into a conversation of another kind.

    Attributes:
        serve: Called with the connection and the bytes that came behind the
            request, without a deadline. Nothing has been answered yet. The
            connection is closed when it returns.
    """

    serve: Callable[[Wire, bytes], Awaitable[None]]


# Runs under the deadline of the request.
Application: TypeAlias = Callable[[Request], Awaitable[Response | Takeover]]


def application(page: Callable[[Request], Response]) -> Application:
    """An application of pages that never have to wait."""

    async def answer(request: Request) -> Response:
        return page(request)

    return answer
