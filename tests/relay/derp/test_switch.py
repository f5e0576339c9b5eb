"""Every switch: what comes in goes to whom, and what is no packet.

The cases are those of the fact sheet's sections 1.2, 1.3, 3.2, 3.6 and 3.7,
read from derpserver.go. Presence, queues and transports have their own files.
"""

from __future__ import annotations

import pytest
import trio

from relay.derp.switch import (
    ConnectionClosed,
    DropReason,
    KeyGone,
    PacketKind,
    SwitchStatistics,
)
from tailnet.derp.frames import (
    FRAME_HEADER,
    MAX_PACKET_SIZE,
    FrameType,
    PeerGone,
    PeerGoneReason,
    Pong,
    RecvPacket,
    encode_close_peer,
    encode_forward_packet,
    encode_frame,
    encode_ping,
    encode_send_packet,
    encode_watch_conns,
)
from tests.relay.derp.conftest import OpenRig
from tests.relay.derp.switch_rig import HELLO, Peer, Rig, disco, key


def header(frame_type: int, length: int) -> bytes:
    """A header that may lie."""
    return FRAME_HEADER.pack(frame_type, length)


async def closed_events(rig: Rig) -> list[ConnectionClosed]:
    """What has been closed; there must be something."""
    with trio.fail_after(1):
        events = await rig.switch.wait_events()
    return [event for event in events if isinstance(event, ConnectionClosed)]


async def assert_closed_by_fault(rig: Rig, peer: Peer) -> None:
    await rig.settle()
    peer.received()
    assert peer.hung_up
    [event] = await closed_events(rig)
    assert (event.id, event.key, event.by_fault) == (peer.id, peer.key, True)
    assert rig.switch.connections(peer.key) == []


# -- routing ----------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1400, MAX_PACKET_SIZE])
async def test_packet_arrives_as_it_was_sent(any_rig: Rig, size: int) -> None:
    rig = any_rig
    a, b = await rig.join("a"), await rig.join("b")
    packet = bytes(i % 251 for i in range(size))
    a.send_packet(b, packet)
    await rig.settle()
    assert b.received() == [RecvPacket(a.key, packet)]
    assert a.received() == []


async def test_client_can_send_to_itself(any_rig: Rig) -> None:
    a = await any_rig.join("a")
    a.send_packet(a, b"me")
    await any_rig.settle()
    assert a.received() == [RecvPacket(a.key, b"me")]


async def test_hello_is_first_and_the_route_is_there_before_it(any_rig: Rig) -> None:
    rig = any_rig
    a = await rig.join("a")
    a.send_packet(key("b"), b"waits in the socket")
    b = rig.adopt("b")
    a.send_packet(b, b"second")
    await rig.settle()
    assert b.received() == [
        HELLO,
        RecvPacket(a.key, b"waits in the socket"),
        RecvPacket(a.key, b"second"),
    ]


async def test_leftover_is_read_before_later_bytes(any_rig: Rig) -> None:
    """Also when it ends in the middle of a frame."""
    rig = any_rig
    b = await rig.join("b")
    stream = b"".join(encode_send_packet(b.key, bytes([i]) * 50) for i in range(4))
    for cut in (0, 3, 20, 37, 60, 87, 90, 200, len(stream)):
        a = rig.adopt("a", leftover=stream[:cut])
        if stream[cut:]:
            a.send(stream[cut:])
        await rig.settle()
        assert a.received() == [HELLO]
        assert b.packets() == [bytes([i]) * 50 for i in range(4)]
        await rig.leave(a)
        b.received()  # PeerGone


async def test_hello_comes_also_if_the_leftover_is_bad(any_rig: Rig) -> None:
    """As with derper, which sends ServerInfo before it reads on."""
    rig = any_rig
    b = await rig.join("b")
    a = rig.adopt("a", leftover=encode_send_packet(b.key, b"1") + header(4, 1))
    await rig.settle()
    assert a.received() == [HELLO]
    assert a.hung_up
    assert {type(frame) for frame in b.received()} == {RecvPacket, PeerGone}


async def test_order_is_kept(any_rig: Rig) -> None:
    """Many frames in one read, for several destinations."""
    rig = any_rig
    a = await rig.join("a")
    peers = [await rig.join(name) for name in "bcd"]
    sent: dict[Peer, list[bytes]] = {peer: [] for peer in peers}
    frames = []
    for i in range(600):
        peer = peers[(i // (1 + i % 7)) % 3]
        packet = i.to_bytes(2, "big") * (1 + i % 40)
        sent[peer].append(packet)
        frames.append(encode_send_packet(peer.key, packet))
    await a.send_all(b"".join(frames))
    await rig.settle()
    for peer in peers:
        assert peer.packets() == sent[peer]
    assert rig.counters.packets_received == 600


async def test_frames_may_be_chopped_anywhere(any_rig: Rig) -> None:
    rig = any_rig
    a, b = await rig.join("a"), await rig.join("b")
    frames = (
        encode_send_packet(b.key, b"first"),
        encode_frame(0x7F, b"unknown"),
        encode_send_packet(b.key, b""),
        encode_ping(b"12345678"),
        encode_send_packet(b.key, b"third"),
    )
    cut = 0
    while True:
        wire = a.codec.encode(b"".join(frames))
        a.send_raw(wire[:cut])
        await rig.settle()
        a.send_raw(wire[cut:])
        await rig.settle()
        assert b.packets() == [b"first", b"", b"third"], cut
        assert a.received() == [Pong(b"12345678")], cut
        cut += 1
        if cut > len(wire):
            break


async def test_one_byte_at_a_time(any_rig: Rig) -> None:
    rig = any_rig
    a, b = await rig.join("a"), await rig.join("b")
    wire = a.codec.encode(
        encode_send_packet(b.key, b"first")
        + encode_frame(0x7F, b"unknown" * 9)
        + encode_send_packet(b.key, b"last")
    )
    for i in range(len(wire)):
        a.send_raw(wire[i : i + 1])
        await rig.settle()
    assert b.packets() == [b"first", b"last"]


async def test_long_frame_in_small_pieces(rig: Rig) -> None:
    """More pieces than the switch keeps apart."""
    a, b = await rig.join("a"), await rig.join("b")
    packet = bytes(i % 253 for i in range(MAX_PACKET_SIZE))
    wire = encode_send_packet(b.key, packet)
    for i in range(0, len(wire), 100):
        a.send_raw(wire[i : i + 100])
        await rig.settle()
    assert b.packets() == [packet]


# -- destinations that are not there ----------------------------------------


async def test_disco_to_nobody_is_answered_three_times_then_once_a_second(
    any_rig: Rig,
) -> None:
    rig = any_rig
    a = await rig.join("a")
    not_here = PeerGone(key("x"), PeerGoneReason.NOT_HERE)
    for _ in range(10):
        a.send_packet(key("x"), disco())
    await rig.settle()
    assert a.received() == [not_here] * 3
    await trio.sleep(0.9)
    a.send_packet(key("x"), disco())
    await rig.settle()
    assert a.received() == []
    for _ in range(5):
        await trio.sleep(1)
        a.send(encode_send_packet(key("x"), disco()) * 3)
        await rig.settle()
        assert a.received() == [not_here]
    counters = rig.counters
    assert counters.peer_gone_not_here_frames == 8
    dropped = counters.packets_dropped
    assert dropped[DropReason.UNKNOWN_DEST, PacketKind.DISCO] == 26
    assert counters.bytes_dropped[DropReason.UNKNOWN_DEST, PacketKind.DISCO] == 26 * 62


async def test_not_here_names_the_destination(rig: Rig) -> None:
    a = await rig.join("a")
    a.send_packet(key("x"), disco())
    a.send_packet(key("y"), disco())
    await rig.settle()
    assert a.received() == [
        PeerGone(key("x"), PeerGoneReason.NOT_HERE),
        PeerGone(key("y"), PeerGoneReason.NOT_HERE),
    ]


async def test_limiter_is_per_connection_and_holds_three(rig: Rig) -> None:
    a, b = await rig.join("a"), await rig.join("b")
    await trio.sleep(30)
    for peer in (a, b):
        peer.send(encode_send_packet(key("x"), disco()) * 9)
    await rig.settle()
    assert len(a.received()) == 3
    assert len(b.received()) == 3


@pytest.mark.parametrize(
    "packet", [b"", b"\4\0\0\0" + bytes(60), disco(61), b"TS" + bytes(100)]
)
async def test_other_packets_to_nobody_are_not_answered(
    rig: Rig, packet: bytes
) -> None:
    a = await rig.join("a")
    a.send_packet(key("x"), packet)
    await rig.settle()
    assert a.received() == []
    counters = rig.counters
    where = DropReason.UNKNOWN_DEST, PacketKind.OTHER
    assert counters.packets_dropped[where] == 1
    assert counters.bytes_dropped[where] == len(packet)
    assert sum(counters.packets_dropped.values()) == 1


# -- frames that are no packets ---------------------------------------------


@pytest.mark.parametrize(
    "frame_type", [0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x08, 0x09, 0x13, 0x15, 0xFF]
)
async def test_unknown_frames_are_skipped(rig: Rig, frame_type: int) -> None:
    """RecvPacket and the like are unknown when a client sends them."""
    a, b = await rig.join("a"), await rig.join("b")
    for body in (b"", b"x", bytes(32), bytes(1000)):
        a.send(encode_frame(frame_type, body), encode_send_packet(b.key, b"after"))
    await rig.settle()
    assert b.packets() == [b"after"] * 4
    assert a.received() == []
    assert rig.counters.unknown_frames == 4


async def test_unknown_frame_of_a_megabyte_is_skipped(any_rig: Rig) -> None:
    rig = any_rig
    a, b = await rig.join("a"), await rig.join("b")
    # Full of what looks like a packet, should the skipping go wrong.
    trap = encode_send_packet(b.key, b"trap")
    body = (trap * (2**20 // len(trap) + 1))[: 2**20]
    await a.send_all(encode_frame(0x55, body) + encode_send_packet(b.key, b"after"))
    await rig.settle()
    assert b.packets() == [b"after"]


async def test_unknown_frame_of_four_gigabytes_may_begin(rig: Rig) -> None:
    a, b = await rig.join("a"), await rig.join("b")
    a.send(header(0x55, 2**32 - 1))
    for _ in range(5):
        a.send(encode_send_packet(b.key, b"part of it"))
        await rig.settle()
    assert b.received() == []
    assert not a.hung_up
    assert len(rig.switch.connections(a.key)) == 1


@pytest.mark.parametrize("cut", range(12))
async def test_skipping_ends_at_the_right_byte(rig: Rig, cut: int) -> None:
    a, b = await rig.join("a"), await rig.join("b")
    wire = encode_frame(0x55, b"zzz") + encode_send_packet(b.key, b"after")
    a.send_raw(wire[:cut])
    await rig.settle()
    a.send_raw(wire[cut:])
    await rig.settle()
    assert b.packets() == [b"after"]


@pytest.mark.parametrize(
    "bad",
    [
        header(FrameType.SEND_PACKET, 0),
        header(FrameType.SEND_PACKET, 31),
        header(FrameType.SEND_PACKET, 32 + MAX_PACKET_SIZE + 1),
        header(FrameType.SEND_PACKET, 2**32 - 1),
        header(FrameType.NOTE_PREFERRED, 0),
        header(FrameType.NOTE_PREFERRED, 2),
        header(FrameType.PING, 7),
        header(FrameType.PING, 1001),
        header(FrameType.WATCH_CONNS, 1),
        header(FrameType.CLOSE_PEER, 31),
        header(FrameType.CLOSE_PEER, 33),
        header(FrameType.FORWARD_PACKET, 63),
        header(FrameType.FORWARD_PACKET, 64 + MAX_PACKET_SIZE + 1),
        # Of the right size, but only for relays of the same region.
        encode_watch_conns(),
        encode_close_peer(key("b")),
        encode_forward_packet(key("a"), key("b"), b"forwarded"),
    ],
    ids=lambda bad: f"{bad[0]:#04x}-{int.from_bytes(bad[1:5], 'big')}",
)
async def test_bad_frames_end_the_connection(any_rig: Rig, bad: bytes) -> None:
    """At once, by their header; what came before them has been carried."""
    rig = any_rig
    a, b = await rig.join("a"), await rig.join("b")
    a.send(encode_send_packet(b.key, b"before"), bad, bytes(200))
    await assert_closed_by_fault(rig, a)
    # Though all of it came in one turn; derper's order is a matter of luck.
    assert b.received() == [
        RecvPacket(a.key, b"before"),
        PeerGone(a.key, PeerGoneReason.DISCONNECTED),
    ]


@pytest.mark.parametrize("size", [8, 9, 1000])
async def test_ping_is_answered_with_its_first_eight_bytes(
    any_rig: Rig, size: int
) -> None:
    a = await any_rig.join("a")
    a.send(encode_frame(FrameType.PING, b"abcdefgh" + bytes(size - 8)))
    await any_rig.settle()
    assert a.received() == [Pong(b"abcdefgh")]
    assert (any_rig.counters.got_ping, any_rig.counters.sent_pong) == (1, 1)


async def test_of_a_flood_of_pings_one_is_pending(rig: Rig) -> None:
    a = await rig.join("a")
    a.send(b"".join(encode_ping(b"%08d" % i) for i in range(500)))
    await rig.settle()
    # derper may get to writing in between; a Pong for each read is the most.
    assert a.received() == [Pong(b"00000000")]
    assert (rig.counters.got_ping, rig.counters.sent_pong) == (500, 1)
    a.send(encode_ping(b"the next"))
    await rig.settle()
    assert a.received() == [Pong(b"the next")]


async def test_pings_of_a_client_that_does_not_read_cost_nothing(rig: Rig) -> None:
    a, b = await rig.join("a", buffers=4096), await rig.join("b")
    for _ in range(40):
        b.send_packet(a, bytes(1400))
    await rig.settle()  # the socket of a is full
    for _ in range(30):
        a.send(encode_ping(b"12345678") * 20)
        await rig.settle()
    assert rig.counters.sent_pong == 1
    frames = []
    for _ in range(60):
        frames += a.received()
        await rig.settle()
    assert frames.count(Pong(b"12345678")) == 1
    assert len(frames) == 41


# -- home -------------------------------------------------------------------


async def test_home_is_a_gauge_and_moves_count_after_five_seconds(rig: Rig) -> None:
    def homes(counters: SwitchStatistics) -> tuple[int, int, int]:
        return (
            counters.current_home_connections,
            counters.home_moves_in,
            counters.home_moves_out,
        )

    async def note(peer: Peer, body: bytes) -> tuple[int, int, int]:
        peer.send(encode_frame(FrameType.NOTE_PREFERRED, body))
        await rig.settle()
        return homes(rig.counters)

    a, b = await rig.join("a"), await rig.join("b")
    assert await note(a, b"\0") == (0, 0, 0)
    assert await note(a, b"\1") == (1, 0, 0)
    assert await note(b, b"\xff") == (2, 0, 0)
    await trio.sleep(5)
    assert await note(b, b"\0") == (1, 0, 0)  # not later than five seconds
    await trio.sleep(0.001)
    assert await note(a, b"\1") == (1, 0, 0)  # nothing new
    assert await note(b, b"\1") == (2, 1, 0)
    assert await note(b, b"\0") == (1, 1, 1)
    await rig.leave(a)
    assert homes(rig.counters) == (0, 1, 1)


# -- keep-alive -------------------------------------------------------------


async def test_keep_alive_comes_at_its_own_pace_idle_and_busy(
    open_rig: OpenRig,
) -> None:
    jitters = iter([0.0, 0.5])
    async with open_rig(jitter=lambda: next(jitters)) as rig:
        idle, busy = await rig.join("idle"), await rig.join("busy")
        arrivals: dict[Peer, list[float]] = {idle: [], busy: []}
        for _ in range(4 * 200):  # 200 s, in which busy sends to itself
            busy.send_packet(busy, b"traffic")
            await trio.sleep(0.25)
            await rig.settle()
            for peer, times in arrivals.items():
                for frame in peer.received():
                    if not isinstance(frame, RecvPacket):
                        assert type(frame).__name__ == "KeepAlive"
                        times.append(trio.current_time())
        # 60 s, and up to 5 s of jitter that stays the same.
        assert arrivals[idle] == [60.0, 120.0, 180.0]
        assert arrivals[busy] == [62.5, 125.0, 187.5]
        assert rig.counters.keep_alives_sent == 6


# -- the rooms above --------------------------------------------------------


async def test_control_frames_of_the_relay_go_out(any_rig: Rig) -> None:
    a = await any_rig.join("a")
    assert any_rig.switch.send(a.id, encode_ping(b"from us!"))
    await any_rig.settle()
    [ping] = a.received()
    assert type(ping).__name__ == "Ping"


async def test_closing_by_id(any_rig: Rig) -> None:
    rig = any_rig
    old, new = await rig.join("a"), await rig.join("a")
    assert rig.switch.connections(old.key) == [old.id, new.id]
    rig.switch.close(old.id, "told so")
    await rig.settle()
    assert old.received() == []
    assert old.hung_up
    assert rig.switch.connections(new.key) == [new.id]
    [event] = await closed_events(rig)
    assert (event.id, event.reason, event.by_fault) == (old.id, "told so", False)
    assert not new.received()
    assert not new.hung_up


async def test_ids_that_are_gone_do_no_harm(rig: Rig) -> None:
    a = await rig.join("a")
    gone = a.id
    await rig.leave(a)
    rig.switch.close(gone, "again")
    assert not rig.switch.send(gone, encode_ping(b"12345678"))
    assert rig.switch.connection_statistics(gone) is None
    b = await rig.join("b")
    assert b.id != gone


async def test_events_tell_who_left_and_why(rig: Rig) -> None:
    first, second = await rig.join("a"), await rig.join("a")
    await rig.leave(first)
    events = await rig.switch.wait_events()
    [event] = events
    assert isinstance(event, ConnectionClosed)
    assert (event.id, event.remaining, event.by_fault) == (first.id, 1, False)
    assert event.reason
    assert "\n" not in event.reason

    async def wait() -> None:
        events = await rig.switch.wait_events()
        assert [type(event) for event in events] == [ConnectionClosed, KeyGone]
        assert events[1] == KeyGone(second.key)
        done.set()

    done = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await rig.settle()
        assert not done.is_set()
        await rig.leave(second)
        assert done.is_set()


async def test_statistics_add_up(any_rig: Rig) -> None:
    rig = any_rig
    a, b = await rig.join("a"), await rig.join("b", not_ideal=True)
    for packet in (b"", b"12345", disco(70), disco(62), bytes(1000)):
        a.send_packet(b, packet)
    a.send_packet(key("x"), b"lost")
    await rig.settle()
    total = 5 + 70 + 62 + 1000
    counters = rig.counters
    assert counters.current_connections == 2
    assert counters.clients == 2
    assert counters.current_not_ideal_connections == 1
    assert counters.accepts == 2
    assert (counters.packets_received, counters.bytes_received) == (6, total + 4)
    assert (counters.packets_sent, counters.bytes_sent) == (5, total)
    assert counters.received_by_kind == {PacketKind.DISCO: 2, PacketKind.OTHER: 4}
    assert counters.queued_bytes == 0
    sender = rig.switch.connection_statistics(a.id)
    receiver = rig.switch.connection_statistics(b.id)
    assert sender is not None
    assert receiver is not None
    assert (sender.packets_received, sender.bytes_received) == (6, total + 4)
    assert (sender.packets_sent, sender.bytes_sent) == (0, 0)
    assert (receiver.packets_sent, receiver.bytes_sent) == (5, total)
    await rig.leave(a)
    [event] = await closed_events(rig)
    assert event.statistics == sender
    # A copy: what happened later is not in it.
    assert counters.current_connections == 2
    assert rig.counters.current_connections == 1


async def test_shutdown_closes_every_connection(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        near = [await rig.join(name) for name in "abc"]
        fars = [peer.sock.dup() for peer in near]
    for far in fars:
        with far:
            assert far.recv(100) == b""
    assert rig.counters.current_connections == 0
    assert rig.switch.connections(key("a")) == []
