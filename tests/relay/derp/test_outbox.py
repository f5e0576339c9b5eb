"""What waits for a client: lanes, bounds, and which packets go."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given, strategies as st

from relay.derp.counters import Counters
from relay.derp.outbox import MAX_CONTROL_LEN, Outbox
from relay.derp.switch import DropReason
from tailnet.derp.frames import KEEP_ALIVE, encode_recv_packet
from tests.relay.derp.switch_rig import key

SOURCE = key("source")
BUDGET = 1000


def wire(number: int, size: int) -> bytes:
    """A frame whose packet can be told from others."""
    return encode_recv_packet(SOURCE, number.to_bytes(4, "big") + bytes(size))


def dropped(counters: Counters, reason: DropReason, *, disco: bool) -> list[int]:
    return counters.dropped.get((reason, disco), [0, 0])


@pytest.fixture
def counters() -> Counters:
    return Counters()


def test_order_of_the_lanes(counters: Counters) -> None:
    outbox = Outbox(counters, max_bytes=1 << 20, max_packets=100)
    outbox.put_packets(b"data", 1, 0.0, disco=False)
    outbox.put_packets(b"disco", 1, 0.0, disco=True)
    assert outbox.put_control(KEEP_ALIVE)
    assert outbox.take(BUDGET, 0.0) == KEEP_ALIVE + b"disco" + b"data"
    assert outbox.take(BUDGET, 0.0) == b""
    assert outbox.queued_bytes == counters.queued_bytes == 0


def test_budget_ends_a_write_but_never_cuts_a_chunk(counters: Counters) -> None:
    outbox = Outbox(counters, max_bytes=1 << 20, max_packets=100)
    chunks = [wire(i, 600) for i in range(4)]
    for chunk in chunks:
        outbox.put_packets(chunk, 1, 0.0, disco=False)
    assert outbox.take(BUDGET, 0.0) == chunks[0] + chunks[1]
    assert outbox.queued_bytes == len(chunks[2]) + len(chunks[3])
    assert outbox.take(BUDGET, 0.0) == chunks[2] + chunks[3]
    assert outbox.packets_sent == counters.packets_sent == 4
    assert outbox.bytes_sent == counters.bytes_sent == 4 * 604


def test_control_is_bounded_and_never_dropped(counters: Counters) -> None:
    outbox = Outbox(counters, max_bytes=1, max_packets=1)
    frames = bytes(MAX_CONTROL_LEN)
    assert outbox.put_control(frames)
    assert not outbox.put_control(b"x")
    outbox.put_packets(wire(0, 9), 1, 0.0, disco=False)
    assert outbox.take(BUDGET, 0.0) == frames
    assert outbox.put_control(b"x")


def test_oldest_goes_and_disco_is_not_data(counters: Counters) -> None:
    outbox = Outbox(counters, max_bytes=1 << 20, max_packets=3)
    outbox.put_packets(wire(99, 60), 1, 0.0, disco=True)
    for number in range(5):
        outbox.put_packets(wire(number, 10), 1, 0.0, disco=False)
    assert outbox.take(BUDGET, 0.0) == b"".join(
        [wire(99, 60), wire(2, 10), wire(3, 10), wire(4, 10)]
    )
    assert dropped(counters, DropReason.QUEUE_HEAD, disco=False) == [2, 28]
    assert dropped(counters, DropReason.QUEUE_HEAD, disco=True) == [0, 0]


def test_run_longer_than_the_queue_keeps_its_newest(counters: Counters) -> None:
    outbox = Outbox(counters, max_bytes=1 << 20, max_packets=3)
    outbox.put_packets(b"".join(wire(i, i) for i in range(9)), 9, 0.0, disco=False)
    assert outbox.take(BUDGET, 0.0) == b"".join(wire(i, i) for i in (6, 7, 8))


def test_time_in_the_queue_is_averaged(counters: Counters) -> None:
    outbox = Outbox(counters, max_bytes=1 << 20, max_packets=3)
    outbox.put_packets(wire(0, 0), 1, 10.0, disco=False)
    outbox.take(BUDGET, 12.0)
    assert counters.average_queue_seconds == pytest.approx(0.2)
    outbox.put_packets(wire(0, 0), 1, 20.0, disco=False)
    outbox.take(BUDGET, 20.0)
    assert counters.average_queue_seconds == pytest.approx(0.18)


def test_drop_oldest_bytes_spares_disco(counters: Counters) -> None:
    outbox = Outbox(counters, max_bytes=1 << 20, max_packets=100)
    outbox.put_packets(wire(9, 60), 1, 0.0, disco=True)
    for number in range(4):
        outbox.put_packets(wire(number, 60), 1, 0.0, disco=False)
    outbox.drop_oldest_bytes(2 * len(wire(0, 60)))
    assert outbox.take(1 << 20, 0.0) == wire(9, 60) + wire(2, 60) + wire(3, 60)
    outbox.put_packets(wire(1, 60), 1, 0.0, disco=True)
    outbox.drop_oldest_bytes(1)
    assert outbox.queued_bytes == 0


def test_drop_all_counts_everything(counters: Counters) -> None:
    outbox = Outbox(counters, max_bytes=1 << 20, max_packets=100)
    outbox.put_control(KEEP_ALIVE)
    outbox.put_packets(wire(0, 6) + wire(1, 6), 2, 0.0, disco=False)
    outbox.put_packets(wire(2, 60), 1, 0.0, disco=True)
    outbox.drop_all(DropReason.GONE_DISCONNECTED)
    assert outbox.take(BUDGET, 0.0) == b""
    assert dropped(counters, DropReason.GONE_DISCONNECTED, disco=False) == [2, 20]
    assert dropped(counters, DropReason.GONE_DISCONNECTED, disco=True) == [1, 64]
    assert counters.queued_bytes == 0


@dataclass(frozen=True)
class Put:
    sizes: list[int]
    disco: bool


puts = st.builds(
    Put, st.lists(st.integers(0, 300), min_size=1, max_size=12), st.booleans()
)


@given(steps=st.lists(puts | st.integers(1, 1500), max_size=30))
def test_like_two_lists_of_packets(steps: list[Put | int]) -> None:
    """Every packet is sent once in order or dropped once, the oldest first."""
    counters = Counters()
    max_bytes, max_packets = 1500, 8
    outbox = Outbox(counters, max_bytes=max_bytes, max_packets=max_packets)
    lanes: dict[bool, deque[bytes]] = {True: deque(), False: deque()}
    number = lost = 0
    for step in steps:
        if isinstance(step, Put):
            wires = [wire(number + i, size) for i, size in enumerate(step.sizes)]
            number += len(wires)
            outbox.put_packets(b"".join(wires), len(wires), 0.0, disco=step.disco)
            lane = lanes[step.disco]
            lane.extend(wires)
            while len(lane) > max_packets or sum(map(len, lane)) > max_bytes:
                lane.popleft()
                lost += 1
        else:
            sent = outbox.take(step, 0.0)
            for lane in (lanes[True], lanes[False]):
                while lane and sent.startswith(lane[0]):
                    sent = sent[len(lane.popleft()) :]
            assert sent == b""
        waiting = [*lanes[True], *lanes[False]]
        assert outbox.queued_bytes == counters.queued_bytes == sum(map(len, waiting))
        assert sum(n for n, _ in counters.dropped.values()) == lost
    assert outbox.take(1 << 20, 0.0) == b"".join([*lanes[True], *lanes[False]])
    assert counters.packets_sent + lost == number
