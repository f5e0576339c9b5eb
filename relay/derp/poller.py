"""Which sockets are ready: epoll, or the like of it where there is none."""

from __future__ import annotations

import select
import selectors
from typing import Final, Protocol

from tailnet.errors import ConfigError

__all__ = ("READABLE", "WRITABLE", "Poller", "SelectorPoller", "open_poller")

# The masks of epoll, for every poller.
READABLE: Final = 0x001
WRITABLE: Final = 0x004


class Poller(Protocol):
    """The part of ``select.epoll`` that the switch uses.

    Its file descriptor is readable when a registered one is ready, so a trio
    task can wait for all of them at once.
    """

    def fileno(self) -> int: ...
    def register(self, fd: int, eventmask: int) -> None: ...
    def modify(self, fd: int, eventmask: int) -> None: ...
    def unregister(self, fd: int) -> None: ...
    def poll(
        self, timeout: float | None = None, maxevents: int = -1
    ) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...


class SelectorPoller:
    """:class:`Poller` on the standard library's selector (kqueue, devpoll).

    Raises:
        ConfigError: This system's selector has no file descriptor.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        if not hasattr(self._selector, "fileno"):
            self._selector.close()
            raise ConfigError("the relay needs Linux, macOS or a BSD")
        self._turn = 0

    def fileno(self) -> int:
        return self._selector.fileno()

    def register(self, fd: int, eventmask: int) -> None:
        self._selector.register(fd, _to_selector(eventmask))

    def modify(self, fd: int, eventmask: int) -> None:
        self._selector.modify(fd, _to_selector(eventmask))

    def unregister(self, fd: int) -> None:
        self._selector.unregister(fd)

    def poll(
        self, timeout: float | None = None, maxevents: int = -1
    ) -> list[tuple[int, int]]:
        ready = [
            (
                key.fd,
                READABLE * bool(events & selectors.EVENT_READ)
                | WRITABLE * bool(events & selectors.EVENT_WRITE),
            )
            for key, events in self._selector.select(timeout)
        ]
        if not 0 <= maxevents < len(ready):
            return ready
        # epoll goes round on its own; here the first would always be first.
        self._turn += maxevents
        first = self._turn % len(ready)
        return (ready[first:] + ready[:first])[:maxevents]

    def close(self) -> None:
        self._selector.close()


def _to_selector(eventmask: int) -> int:
    return selectors.EVENT_READ * bool(eventmask & READABLE) | (
        selectors.EVENT_WRITE * bool(eventmask & WRITABLE)
    )


def open_poller() -> Poller:
    """The quickest poller of this system.

    Raises:
        ConfigError: There is none that a task can wait for.
    """
    return select.epoll() if hasattr(select, "epoll") else SelectorPoller()
