"""Who is here: the connections of each key, and which of them is active.

A node that reconnects before its old connection is seen to be dead, or two
machines that share a copied key, have several connections with one key. They
are all kept: closing one would make its owner come back at once and push the
other out, for ever. Packets go to the *active* one, which is the newest until
another speaks (derpserver.go clientSet, dupPolicy lastWriterIsActive).
"""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ("Client",)

ConnectionT = TypeVar("ConnectionT")


class Client(Generic[ConnectionT]):
    """One key, with the connections that it has here.

    Attributes:
        key: The node key, 32 bytes.
        connections: Oldest first; never empty while the client is listed.
        active: The one that gets packets.
        heard_by: Who has had a packet from this key, and is to be told when
            the key is gone.
    """

    __slots__ = ("_last", "_spoke", "active", "connections", "heard_by", "key")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.connections: list[ConnectionT] = []
        self.active: ConnectionT | None = None
        self.heard_by: set[ConnectionT] = set()
        self._last: ConnectionT | None = None
        # Speakers, the latest at the end: all that is asked of it is who of
        # those still here spoke last. A dict, because somebody may well open
        # a thousand connections with one key.
        self._spoke: dict[ConnectionT, None] = {}

    @property
    def is_duplicate(self) -> bool:
        return len(self.connections) > 1

    def add(self, connection: ConnectionT) -> None:
        """A connection comes, and is the active one."""
        if self.is_duplicate:
            # derpserver.go registerClient: the third counts as having spoken,
            # the second does not.
            self._spoke[connection] = None
            self._last = connection
        elif self.connections:
            self._spoke = dict.fromkeys(self.connections)
            self._last = connection
        self.connections.append(connection)
        self.active = connection

    def note_activity(self, connection: ConnectionT) -> None:
        """One of several has sent a frame: it is the active one now."""
        self._last = self.active = connection
        self._spoke.pop(connection, None)
        self._spoke[connection] = None

    def remove(self, connection: ConnectionT) -> None:
        """A connection goes; another becomes active if this one was."""
        self.connections.remove(connection)
        self._spoke.pop(connection, None)
        if self._last is connection:
            self._last = None
        if len(self.connections) == 1:
            self.active = self.connections[0]
            self._last = None
            self._spoke.clear()
        else:
            # derpserver.go removeClient and pickActiveClient.
            self.active = self._last or next(reversed(self._spoke), None)
