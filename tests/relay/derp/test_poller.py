"""Both pollers do what the switch asks of them."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from relay.derp.poller import READABLE, WRITABLE, Poller, SelectorPoller, open_poller


@pytest.fixture(params=[open_poller, SelectorPoller], ids=["own", "selector"])
def poller(request: pytest.FixtureRequest) -> Iterator[Poller]:
    made: Poller = request.param()
    yield made
    made.close()


def test_ready_sockets(poller: Poller) -> None:
    near, far = socket.socketpair()
    with near, far:
        fd = near.fileno()
        poller.register(fd, READABLE)
        assert poller.poll(0) == []
        far.send(b"x")
        assert poller.poll(0, 8) == [(fd, READABLE)]
        # Level-triggered, and the poller's own descriptor shows it.
        assert select.select([poller.fileno()], [], [], 0)[0] == [poller.fileno()]
        poller.modify(fd, READABLE | WRITABLE)
        assert poller.poll(0) == [(fd, READABLE | WRITABLE)]
        near.recv(1)
        assert poller.poll(0) == [(fd, WRITABLE)]
        poller.unregister(fd)
        assert poller.poll(0) == []


def test_at_most_so_many_at_once(poller: Poller) -> None:
    pairs = [socket.socketpair() for _ in range(5)]
    for near, far in pairs:
        poller.register(near.fileno(), READABLE)
        far.send(b"x")
    assert len(poller.poll(0, 3)) == 3
    for near, far in pairs:
        near.close()
        far.close()


def test_everybody_has_a_turn(poller: Poller) -> None:
    """Though all of them are always ready, and few are taken at once."""
    pairs = [socket.socketpair() for _ in range(7)]
    for near, far in pairs:
        poller.register(near.fileno(), READABLE)
        far.send(b"x")
    seen = [fd for _ in range(7) for fd, _ in poller.poll(0, 3)]
    assert sorted(seen) == sorted([near.fileno() for near, _ in pairs] * 3)
    for near, far in pairs:
        near.close()
        far.close()
