"""Counters and what others see of them."""

from __future__ import annotations

from relay.derp.counters import Counters
from relay.derp.switch import DropReason, PacketKind


def test_snapshot_is_a_copy_by_name() -> None:
    counters = Counters()
    plain = [name for name in Counters.__slots__ if name != "dropped"]
    for number, name in enumerate(plain, start=1):
        setattr(counters, name, number)
    snapshot = counters.snapshot()
    for name in set(plain) - {"average_queue_seconds", "packets_received_disco"}:
        assert getattr(snapshot, name) == getattr(counters, name), name
    assert snapshot.average_queue_duration_ms == counters.average_queue_seconds * 1000
    counters.accepts += 1
    assert snapshot.accepts == counters.accepts - 1


def test_kinds_add_up() -> None:
    counters = Counters()
    counters.packets_received = 10
    counters.packets_received_disco = 3
    assert counters.snapshot().received_by_kind == {
        PacketKind.DISCO: 3,
        PacketKind.OTHER: 7,
    }


def test_drops_by_reason_and_kind() -> None:
    counters = Counters()
    counters.drop(DropReason.QUEUE_HEAD, 2, 100, disco=False)
    counters.drop(DropReason.QUEUE_HEAD, 1, 50, disco=False)
    counters.drop(DropReason.UNKNOWN_DEST, 1, 62, disco=True)
    counters.drop(DropReason.WRITE_ERROR, 0, 0, disco=True)
    snapshot = counters.snapshot()
    other = DropReason.QUEUE_HEAD, PacketKind.OTHER
    disco = DropReason.UNKNOWN_DEST, PacketKind.DISCO
    assert (snapshot.packets_dropped[other], snapshot.bytes_dropped[other]) == (3, 150)
    assert (snapshot.packets_dropped[disco], snapshot.bytes_dropped[disco]) == (1, 62)
    assert sum(snapshot.packets_dropped.values()) == 4
    assert len(snapshot.packets_dropped) == len(DropReason) * len(PacketKind)
