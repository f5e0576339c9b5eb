"""Queues, slow readers and time: every switch keeps its bounds."""

from __future__ import annotations

import gc
import random

import pytest
import trio

from relay.derp.poller import SelectorPoller
from relay.derp.pure_connection import Connection
from relay.derp.pure_switch import PureSwitch
from relay.derp.switch import ConnectionClosed, DropReason, Limits, PacketKind
from tailnet.derp.frames import KeepAlive, RecvPacket, encode_send_packet
from tests.relay.derp.conftest import OpenRig
from tests.relay.derp.switch_rig import Peer, Rig, disco, key

QUEUE_HEAD = DropReason.QUEUE_HEAD, PacketKind.OTHER
SMALL = 4096  # of a socket, in bytes; the kernel makes it a little more


async def fill(rig: Rig, sender: Peer, receiver: Peer, packets: int) -> None:
    """Send packets of 1,000 bytes, numbered; nobody reads."""
    for number in range(packets):
        packet = number.to_bytes(4, "big") + bytes(996)
        await sender.send_all(encode_send_packet(receiver.key, packet))
    await rig.settle()


async def drain(rig: Rig, receiver: Peer) -> list[int]:
    """Read all that waits; returns the numbers of the packets."""
    numbers: list[int] = []
    while receiver.has_bytes():
        packets = [p for p in receiver.received() if isinstance(p, RecvPacket)]
        numbers += [int.from_bytes(p.packet[:4], "big") for p in packets]
        await rig.settle()
    return numbers


async def test_full_queue_drops_its_oldest_and_counts(open_rig: OpenRig) -> None:
    limits = Limits(queue_packets=10, write_timeout=0)
    async with open_rig(limits=limits) as rig:
        sender = await rig.join("sender")
        receiver = await rig.join("receiver", buffers=SMALL)
        await fill(rig, sender, receiver, 300)
        lost = rig.counters.packets_dropped[QUEUE_HEAD]
        assert lost > 0
        assert rig.counters.bytes_dropped[QUEUE_HEAD] == lost * 1000
        numbers = await drain(rig, receiver)
        assert len(numbers) == 300 - lost
        assert numbers == sorted(numbers)
        assert numbers[-10:] == list(range(290, 300))


async def test_disco_overtakes_what_waits(open_rig: OpenRig) -> None:
    async with open_rig(limits=Limits(write_timeout=0)) as rig:
        sender = await rig.join("sender")
        receiver = await rig.join("receiver", buffers=SMALL)
        # More than the sockets and what is sealed ahead can hold.
        await fill(rig, sender, receiver, 600)
        sender.send_packet(receiver, disco())
        await rig.settle()
        frames = []
        while more := receiver.received():
            frames += more
            await rig.settle()
        packets = [f.packet for f in frames if isinstance(f, RecvPacket)]
        assert len(packets) == 601
        assert packets.index(disco()) < 300


async def test_write_deadline_runs_from_the_last_progress(open_rig: OpenRig) -> None:
    async with open_rig(limits=Limits(write_timeout=2.0)) as rig:
        sender = await rig.join("sender")
        receiver = await rig.join("receiver", buffers=SMALL)
        await fill(rig, sender, receiver, 400)
        for _ in range(4):
            await trio.sleep(1.5)
            assert receiver.received()  # slowly, but it reads
        await rig.settle()
        assert rig.counters.write_timeouts == 0
        started = trio.current_time()
        events = await rig.switch.wait_events()
        assert 1.9 <= trio.current_time() - started <= 2.1
        [closed] = [e for e in events if isinstance(e, ConnectionClosed)]
        assert (closed.id, closed.reason) == (receiver.id, "the client does not read")
        assert rig.counters.write_timeouts == 1
        gone = DropReason.GONE_DISCONNECTED, PacketKind.OTHER
        assert rig.counters.packets_dropped[gone] > 0
        assert rig.counters.queued_bytes == 0


async def test_no_write_deadline_without_a_timeout(open_rig: OpenRig) -> None:
    async with open_rig(limits=Limits(write_timeout=0)) as rig:
        sender = await rig.join("sender")
        receiver = await rig.join("receiver", buffers=SMALL)
        await fill(rig, sender, receiver, 200)
        await trio.sleep(600)
        assert rig.counters.write_timeouts == 0
        assert await drain(rig, receiver) == list(range(200))


@pytest.mark.parametrize("transport", ["plain", "tls", "websocket"])
async def test_slow_reader_keeps_its_stream_and_costs_others_nothing(
    open_rig: OpenRig, transport: str
) -> None:
    rng = random.Random(transport)
    limits = Limits(queue_packets=20, write_timeout=0)
    async with open_rig(transport=transport, limits=limits) as rig:
        sender = await rig.join("sender")
        slow = await rig.join("slow", buffers=SMALL)
        left, right = await rig.join("left"), await rig.join("right")
        numbers = []
        for number in range(150):
            packet = number.to_bytes(4, "big") + rng.randbytes(rng.randrange(65_000))
            await sender.send_all(encode_send_packet(slow.key, packet))
            for frame in slow.received(limit=rng.choice([1, 7, 333, 4096, 1 << 17])):
                assert isinstance(frame, RecvPacket)
                numbers.append(int.from_bytes(frame.packet[:4], "big"))
            left.send_packet(right, packet[:100])
            await rig.settle()
            assert right.packets() == [packet[:100]]
        numbers += await drain(rig, slow)
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 149
        dropped = sum(rig.counters.packets_dropped.values())
        assert len(numbers) + dropped == 150
        assert dropped > 0


async def test_all_queues_together_are_bounded(open_rig: OpenRig) -> None:
    limits = Limits(write_timeout=0)
    async with open_rig(limits=limits, queue_total=300_000) as rig:
        sender = await rig.join("sender")
        full = await rig.join("full", buffers=SMALL)
        less = await rig.join("less", buffers=SMALL)
        await fill(rig, sender, less, 200)
        await fill(rig, sender, full, 600)
        assert rig.counters.queued_bytes <= 300_000
        assert rig.counters.packets_dropped[QUEUE_HEAD] > 0
        # The fullest paid; the other got everything.
        assert await drain(rig, less) == list(range(200))
        assert (await drain(rig, full))[-1] == 599


async def test_flood_delays_a_bystander_by_a_bounded_number_of_turns(
    open_rig: OpenRig,
) -> None:
    async with open_rig(limits=Limits(queue_packets=100, write_timeout=0)) as rig:
        target = await rig.join("target", buffers=SMALL)
        senders = [await rig.join(f"sender {i}") for i in range(8)]
        left, right = await rig.join("left"), await rig.join("right")
        flood = encode_send_packet(target.key, bytes(1400)) * 40
        for _ in range(20):
            for sender in senders:
                sender.send_some(flood)
            left.send_packet(right, b"ping")
            # No settling: the flood never stops. A turn or two must do.
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.wait_writable(left.sock)
            assert right.packets() == [b"ping"]


async def test_keep_alives_do_not_catch_up_after_a_pause(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        peer = await rig.join("peer")
        await trio.sleep(60.5)
        assert peer.received() == [KeepAlive()]
        await trio.sleep(180)
        assert peer.received() == [KeepAlive()] * 3


async def test_bug_in_one_connection_ends_that_one_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = [await rig.join(name) for name in "abc"]
    original = Connection.packets

    def packets(
        self: Connection, dst: bytes, frames: bytes, count: int, *, disco: bool
    ) -> None:
        if self.key == bytes(key("a")):
            raise ZeroDivisionError("a bug")
        original(self, dst, frames, count, disco=disco)

    monkeypatch.setattr(Connection, "packets", packets)
    a.send_packet(c, b"never arrives")
    b.send_packet(c, b"arrives")
    await rig.settle()
    assert c.packets() == [b"arrives"]
    a.received()
    assert a.hung_up


async def test_closed_connections_leave_memory_at_once(rig: Rig) -> None:
    peers = [await rig.join(f"peer {i}") for i in range(20)]
    for peer in peers:
        peer.send_packet(peers[0], b"x")
    await rig.settle()
    for peer in peers:
        peer.close()
    await rig.settle()
    await rig.switch.wait_events()
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, Connection)]


async def test_adopting_after_the_end_closes_the_socket(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.join("first")
    late = rig.adopt("late")
    assert late.received() == []
    assert late.hung_up
    rig.close()


async def test_other_pollers_carry_packets_too() -> None:
    switch = PureSwitch(poller=SelectorPoller())
    rig = Rig(switch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(switch.run)
        a, b = await rig.join("a"), await rig.join("b")
        a.send_packet(b, b"hello")
        await rig.settle()
        assert b.packets() == [b"hello"]
        nursery.cancel_scope.cancel()
    rig.close()


async def test_turn_that_ends_early_goes_on_where_it_was() -> None:
    """The first in line must not be the only one that is ever served."""
    switch = PureSwitch(turn_time=-1.0)
    rig = Rig(switch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(switch.run)
        await talk_to_hub(rig)
        nursery.cancel_scope.cancel()
    rig.close()


async def talk_to_hub(rig: Rig) -> None:
    hub = await rig.join("hub")
    peers = [await rig.join(f"peer {i}") for i in range(8)]
    for number in range(3):
        for peer in peers:
            peer.send_packet(hub, bytes([number]))
        if number == 1:
            peers[3].close()
        await rig.settle()
        packets = [f for f in hub.received() if isinstance(f, RecvPacket)]
        assert {p.src for p in packets} == {p.key for p in peers}
        if number == 1:
            del peers[3]
