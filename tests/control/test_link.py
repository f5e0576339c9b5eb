"""The link of these tests keeps the contract of the Protocol."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.control.link import MAX_CLOSE_REASON_LEN, Link
from tests.control.memory_link import link_pair


async def test_what_is_sent_is_kept_in_order(autojump_clock: MockClock) -> None:
    near, far = link_pair(10)
    link: Link = near
    link.send_nowait(b"0123456")
    assert link.unsent == 0
    link.send_nowait(b"789abc")
    link.send_nowait(b"def")
    assert link.unsent == 6
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.flush)
        await wait_all_tasks_blocked()
        assert link.unsent == 6
        got = b""
        while len(got) < 16:
            got += await far.receive()
    assert got == b"0123456789abcdef"
    assert link.unsent == 0


async def test_nothing_is_lost_by_cancelling(autojump_clock: MockClock) -> None:
    near, far = link_pair(2)
    near.send_nowait(b"abcdef")
    with trio.move_on_after(1.0):
        await near.flush()
    assert near.unsent == 4
    assert await far.receive() == b"ab"
    with trio.move_on_after(1.0) as scope:
        await far.receive()
        await near.receive()
    assert scope.cancelled_caught
    far.send_nowait(b"x")
    assert await near.receive() == b"x"


async def test_ends(autojump_clock: MockClock) -> None:
    near, far = link_pair()
    near.send_nowait(b"last")
    await near.aclose(1011, "x" * MAX_CLOSE_REASON_LEN)
    near.send_nowait(b"to nobody")
    assert await far.receive() == b"last"
    assert await far.receive() == b""
    with pytest.raises(trio.ClosedResourceError):
        await near.receive()
    far.break_off()
    with pytest.raises(trio.BrokenResourceError):
        await far.receive()
    far.send_nowait(b"to nobody")
    assert far.unsent == 0
