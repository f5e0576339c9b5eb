"""What a client tells its user."""

from __future__ import annotations

from tailnet.derp.events import ClientDropReason, ClientLimits, ClientStatistics
from tailnet.derp.frames import MAX_PACKET_SIZE


def test_every_drop_reason_is_counted_from_the_start() -> None:
    assert ClientStatistics().packets_dropped == dict.fromkeys(ClientDropReason, 0)


def test_counters_are_not_shared() -> None:
    first, second = ClientStatistics(), ClientStatistics()
    first.packets_dropped[ClientDropReason.QUEUE_HEAD] += 1
    assert second.packets_dropped[ClientDropReason.QUEUE_HEAD] == 0


def test_default_queues_hold_several_of_the_largest_packets() -> None:
    limits = ClientLimits()
    assert limits.send_bytes >= 8 * MAX_PACKET_SIZE
    assert limits.receive_bytes >= 8 * MAX_PACKET_SIZE
    # Go's magicsock has room for as many.
    assert limits.send_packets >= 32
