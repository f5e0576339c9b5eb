"""Two links that are each other's end: the network of the tests, in memory."""

from __future__ import annotations

from collections import deque

import trio

from tailnet.errors import RemoteProtocolError

__all__ = ("MemoryLink", "link_pair")


class MemoryLink:
    """One end of a connection whose "socket" takes a limited number of bytes.

    Attributes:
        closed_with: Code and reason, once this end is closed.
        sends: How often something was sent.
        received: All that the peer has ever sent here, taken or not.
    """

    def __init__(self, capacity: int) -> None:
        self.peer: MemoryLink
        self.capacity = capacity
        self.closed_with: tuple[int, str] | None = None
        self.sends = 0
        self.received = bytearray()
        self._incoming: deque[bytes] = deque()
        self._incoming_len = 0
        self._kept: deque[bytes] = deque()
        self._kept_len = 0
        self._lot = trio.lowlevel.ParkingLot()
        self._eof = False
        self._broken: Exception | None = None
        self.flushing = False

    # -- the Protocol -------------------------------------------------------

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._incoming:
            if self._broken is not None:
                raise self._broken
            if self.closed_with is not None:
                raise trio.ClosedResourceError("closed on this side")
            if self._eof:
                return b""
            await self._lot.park()
        data = self._incoming.popleft()
        self._incoming_len -= len(data)
        self.peer._lot.unpark_all()
        return data

    def send_nowait(self, data: bytes) -> None:
        if self._broken is not None or self.closed_with is not None:
            return
        assert data, "a send of nothing"
        self.sends += 1
        self._kept.append(bytes(data))
        self._kept_len += len(data)
        self._push()

    @property
    def unsent(self) -> int:
        return self._kept_len

    async def flush(self) -> None:
        assert not self.flushing, "two tasks flush"
        self.flushing = True
        try:
            await trio.lowlevel.checkpoint()
            while self._kept:
                if self._broken is not None:
                    raise self._broken
                if self.closed_with is not None:
                    raise trio.ClosedResourceError("closed on this side")
                self._push()
                if self._kept:
                    await self._lot.park()
        finally:
            self.flushing = False

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        assert len(reason.encode()) <= 123
        assert not self.flushing, "two tasks write"
        if self.closed_with is None:
            self._push()
            self.closed_with = code, reason
            self.peer._eof = True
            self._lot.unpark_all()
            self.peer._lot.unpark_all()
        await trio.lowlevel.checkpoint()

    # -- for tests ----------------------------------------------------------

    def break_off(self, exc: Exception | None = None) -> None:
        """The connection breaks, as this end sees it."""
        self._broken = exc or trio.BrokenResourceError("reset by the test")
        self._lot.unpark_all()

    def break_rules(self) -> None:
        """The websocket's end: what the peer sent is no websocket."""
        self.break_off(RemoteProtocolError("a text message"))

    def _push(self) -> None:
        peer = self.peer
        while self._kept and (room := self.capacity - peer._incoming_len) > 0:
            data = self._kept.popleft()
            if len(data) > room:
                self._kept.appendleft(data[room:])
                data = data[:room]
            self._kept_len -= len(data)
            peer.received += data
            peer._incoming.append(data)
            peer._incoming_len += len(data)
            peer._lot.unpark_all()


def link_pair(capacity: int = 1 << 20) -> tuple[MemoryLink, MemoryLink]:
    """Two connected ends; ``capacity`` is of each way."""
    near, far = MemoryLink(capacity), MemoryLink(capacity)
    near.peer, far.peer = far, near
    return near, far
