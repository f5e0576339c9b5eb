"""What the control transport runs on: a stream of bytes, mostly a websocket."""

from __future__ import annotations

from typing import Final, Protocol

__all__ = (
    "CLOSE_GOING_AWAY",
    "CLOSE_INTERNAL_ERROR",
    "CLOSE_NORMAL",
    "MAX_CLOSE_REASON_LEN",
    "Link",
)

# RFC 6455 7.4.1. Bytes for the longest reason: a control frame has 125, and
# the code takes 2.
CLOSE_NORMAL: Final = 1000
CLOSE_GOING_AWAY: Final = 1001
CLOSE_INTERNAL_ERROR: Final = 1011
MAX_CLOSE_REASON_LEN: Final = 123


class Link(Protocol):
    """A byte stream whose sending side can be tried without waiting.

    One task receives, one task flushes, and any may send.
    """

    async def receive(self) -> bytes:
        """The next bytes; ``b""`` at the end.

        To cancel this loses nothing: the next call goes on.

        Raises:
            RemoteProtocolError: The peer broke the rules of the websocket.
            OSError, trio.BrokenResourceError: The connection broke.
            trio.ClosedResourceError: It was closed on this side.
        """
        ...

    def send_nowait(self, data: bytes) -> None:
        """Send what can be sent now, and keep the rest, in order.

        Never raises for a connection that broke or is closed: then it does
        nothing, and ``receive`` says so.
        """
        ...

    @property
    def unsent(self) -> int:
        """Bytes kept, about: what surrounds them on the wire may count too."""
        ...

    async def flush(self) -> None:
        """Write until nothing is kept. To cancel this loses nothing.

        Raises:
            OSError, trio.BrokenResourceError: The connection broke.
            trio.ClosedResourceError: It was closed on this side.
        """
        ...

    async def aclose(self, code: int = CLOSE_NORMAL, reason: str = "") -> None:
        """Close; the code and reason are for the peer's websocket.

        What is kept is sent before them, as far as the caller's deadline
        allows. A websocket that has said Close already, on its own account or
        in answer, says no other.

        Args:
            code: RFC 6455 7.4.1.
            reason: At most MAX_CLOSE_REASON_LEN bytes of UTF-8.
        """
        ...
