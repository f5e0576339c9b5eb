"""A crowd that does everything at once, and what must hold whatever it does.

Random clients on every transport come, speak, read a little, stop reading, break
the protocol, hang up in the middle of a frame. After each step the books of the
pure switch must balance, and what a client reads must be whole frames in order.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
import trio

from relay.derp import pure_connection
from relay.derp.pure_connection import Connection
from relay.derp.pure_switch import PureSwitch
from relay.derp.switch import ConnectionClosed, DropReason, KeyGone, Limits, PacketKind
from tailnet.derp.frames import (
    RecvPacket,
    encode_frame,
    encode_note_preferred,
    encode_ping,
    encode_send_packet,
)
from tests.relay.derp.conftest import OpenRig
from tests.relay.derp.switch_rig import TRANSPORTS, Peer, Rig, disco, key

NAMES = "abcdefgh"
LIMITS = Limits(queue_bytes=12_000, queue_packets=20)


def assert_books_balance(switch: PureSwitch) -> None:
    connections: list[Connection] = list(switch._by_id.values())
    assert set(connections) == set(switch._by_fd.values())
    assert {c for client in switch.clients.values() for c in client.connections} == set(
        connections
    )
    for name, client in switch.clients.items():
        assert switch.active[name] is client.active
        assert client.active in client.connections
        for listener in client.heard_by:
            assert not listener.closed
            assert client in (listener.heard or ())
    assert switch.active.keys() == switch.clients.keys()
    for connection in connections:
        assert not connection.dirty
        for heard in connection.heard or ():
            assert switch.clients[heard.key] is heard
            assert connection in heard.heard_by
    assert switch.dirty == []
    assert switch._full == {c for c in connections if c.watched}
    waiting = {c: c.outbox.queued_bytes for c in connections}
    assert switch.counters.queued_bytes == sum(waiting.values())
    assert {c for c in connections if waiting[c]} <= switch._full
    # No more timers than connections have had in the last minutes.
    deadlines = sum(c.write_timer_runs for c in connections)
    assert sum(t.kind == "write deadline" for t in switch._timers) >= deadlines


@dataclass
class Crowd:
    """Clients with a mind of their own."""

    rig: Rig
    rng: random.Random
    peers: list[Peer] = field(default_factory=list)
    numbers: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    newest: dict[tuple[int, bytes, bool], int] = field(default_factory=dict)

    def join(self) -> None:
        self.rig.transport = self.rng.choice(TRANSPORTS)
        leftover = b"" if self.rng.random() < 0.7 else encode_ping(b"12345678")
        self.peers.append(
            self.rig.adopt(
                self.rng.choice(NAMES),
                leftover=leftover,
                buffers=self.rng.choice([None, 2304, 2304]),
            )
        )

    def frames(self, peer: Peer) -> bytes:
        """Anything that is allowed."""
        found = []
        for _ in range(self.rng.choice([1, 1, 3, 30])):
            what = self.rng.random()
            if what < 0.8:
                self.numbers[peer.id] += 1
                mark = peer.id.to_bytes(4, "big") + self.numbers[peer.id].to_bytes(
                    4, "big"
                )
                size = self.rng.choice([0, 60, 60, 1400, self.rng.randrange(9000)])
                body = mark + bytes(size)
                packet = disco(62) + body if self.rng.random() < 0.2 else body
                dst = key(self.rng.choice(NAMES + "x"))
                found.append(encode_send_packet(dst, packet))
            elif what < 0.9:
                found.append(encode_frame(0x77, bytes(self.rng.randrange(300))))
            else:
                found.append(encode_ping(b"12345678"))
        found.append(encode_note_preferred(preferred=self.rng.random() < 0.5))
        return b"".join(found)

    def step(self) -> None:
        what = self.rng.random()
        if what < 0.08 or len(self.peers) < 3:
            if len(self.peers) < 14:
                self.join()
            return
        peer = self.rng.choice(self.peers)
        if what < 0.6:
            try:
                peer.send_some(self.frames(peer))
            except OSError:
                self.peers.remove(peer)  # the relay has hung up
        elif what < 0.94:
            self.read(peer, self.rng.choice([1, 100, 3000, 3000]))
        else:
            self.peers.remove(peer)
            if what < 0.955:
                try:
                    peer.send_some(encode_frame(4, b"short"))
                except OSError:
                    pass
            elif what < 0.965:
                self.rig.switch.close(peer.id, "told so")
            elif what < 0.98:
                return  # never reads again
            peer.close()

    def read(self, peer: Peer, limit: int | None) -> None:
        for frame in peer.received(limit):
            if isinstance(frame, RecvPacket):
                is_disco = frame.packet.startswith(b"TS")
                mark = frame.packet[62:] if is_disco else frame.packet
                sender = mark[:4]
                number = int.from_bytes(mark[4:8], "big")
                lane = (peer.id, sender, is_disco)
                assert number > self.newest.get(lane, 0)
                self.newest[lane] = number
        if peer.hung_up:
            self.peers.remove(peer)


@pytest.mark.parametrize("seed", range(6))
async def test_books_balance_whatever_a_crowd_does(
    open_rig: OpenRig, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # So that little is on its way in the sockets, and much waits in queues.
    monkeypatch.setattr(pure_connection, "WRITE_BUDGET", 3000)
    async with open_rig(limits=LIMITS, queue_total=60_000) as rig:
        switch = rig.switch
        if not isinstance(switch, PureSwitch):
            pytest.skip("looks into the pure switch")
        crowd = Crowd(rig, random.Random(seed))
        for _ in range(1000):
            for _ in range(crowd.rng.choice([1, 1, 4])):
                crowd.step()
            if crowd.rng.random() < 0.9:
                await rig.settle()
                assert_books_balance(switch)
            else:
                await trio.sleep(crowd.rng.choice([0.1, 1, 3, 70]))
        accepted = rig.counters.accepts
        # How much the kernel holds of a socket decides what is dropped when;
        # that something is, shows that the crowd was one.
        drops = rig.counters.packets_dropped
        assert sum(drops[DropReason.QUEUE_HEAD, kind] for kind in PacketKind) > 0
        for peer in rig.peers:
            peer.close()
        await rig.settle()
        assert_books_balance(switch)
        counters = rig.counters
        assert (counters.current_connections, counters.clients) == (0, 0)
        assert counters.queued_bytes == 0
        events = await switch.wait_events()
        closed = [event for event in events if isinstance(event, ConnectionClosed)]
        assert len({event.id for event in closed}) == len(closed) == accepted
        assert "internal error" not in {event.reason for event in closed}
        assert isinstance(events[-1], KeyGone)
        # What came in went out or was dropped, packet by packet.
        dropped = sum(counters.packets_dropped.values())
        assert counters.packets_received == counters.packets_sent + dropped
        assert counters.bytes_received == counters.bytes_sent + sum(
            counters.bytes_dropped.values()
        )
        for total, field_name in (
            (counters.packets_received, "packets_received"),
            (counters.bytes_sent, "bytes_sent"),
        ):
            each = sum(getattr(event.statistics, field_name) for event in closed)
            assert each == total
