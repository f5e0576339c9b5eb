"""Every switch: several connections of one key, and who hears of a leave.

Duplicates are the table of the fact sheet's section 3.4; the cases are those of
derpserver_test.go TestServerDupClients for the policy lastWriterIsActive, and
more of the same kind.
"""

from __future__ import annotations

import random

import pytest
import trio

from tailnet.derp.frames import (
    PeerGone,
    PeerGoneReason,
    RecvPacket,
    ServerFrame,
    encode_frame,
    encode_note_preferred,
    encode_ping,
    encode_send_packet,
)
from tests.relay.derp.switch_rig import Peer, Rig, disco, key

SPEECH = [
    encode_frame(0x7F, b"unknown"),
    encode_frame(0x13, bytes(8)),  # a Pong
    encode_note_preferred(preferred=True),
    encode_ping(b"12345678"),
    encode_send_packet(key("nobody"), b"packet"),
]


def gone(peer: Peer) -> ServerFrame:
    return PeerGone(peer.key, PeerGoneReason.DISCONNECTED)


async def active(rig: Rig, *candidates: Peer) -> Peer | None:
    """Which of the connections of a key gets its packets."""
    witness = next((p for p in rig.peers if p.key == key("witness")), None)
    if witness is None:
        witness = await rig.join("witness")
    for candidate in candidates:
        candidate.received()
    witness.send_packet(candidates[0], b"who?")
    await rig.settle()
    question = RecvPacket(witness.key, b"who?")
    got = [c for c in candidates if not c.hung_up and c.received() == [question]]
    assert len(got) <= 1
    return got[0] if got else None


def duplicates(rig: Rig) -> tuple[int, int, int]:
    counters = rig.counters
    return (
        counters.dup_client_keys,
        counters.dup_client_conns,
        counters.total_dup_client_conns,
    )


# -- duplicates -------------------------------------------------------------


async def test_newest_is_active_and_the_old_one_stays(any_rig: Rig) -> None:
    rig = any_rig
    first = await rig.join("a")
    assert await active(rig, first) is first
    assert duplicates(rig) == (0, 0, 0)
    second = await rig.join("a")
    assert await active(rig, first, second) is second
    assert duplicates(rig) == (1, 2, 1)
    third = await rig.join("a")
    assert await active(rig, first, second, third) is third
    assert duplicates(rig) == (1, 3, 2)
    assert not first.hung_up
    assert rig.switch.connections(first.key) == [first.id, second.id, third.id]
    assert rig.counters.clients == 2  # with the witness


@pytest.mark.parametrize("speech", SPEECH, ids=lambda frame: f"{frame[0]:#04x}")
async def test_who_speaks_is_active(rig: Rig, speech: bytes) -> None:
    """Any frame will do, also one that is unknown."""
    first, second = await rig.join("a"), await rig.join("a")
    first.send(speech)
    await rig.settle()
    assert await active(rig, first, second) is first
    second.send(speech)
    await rig.settle()
    assert await active(rig, first, second) is second


async def test_header_is_enough_to_speak_but_not_less(rig: Rig) -> None:
    """derpserver.go run notes activity between header and body."""
    first, second = await rig.join("a"), await rig.join("a")
    frame = encode_send_packet(key("nobody"), b"packet")
    first.send(frame[:4])
    await rig.settle()
    assert await active(rig, first, second) is second
    first.send(frame[4:5])
    await rig.settle()
    assert await active(rig, first, second) is first


async def test_small_overlap_replacement(rig: Rig) -> None:
    """Wi-Fi dies: the new connection comes before the old one times out."""
    old, new = await rig.join("a"), await rig.join("a")
    await rig.leave(old)
    assert await active(rig, new) is new
    assert duplicates(rig) == (0, 0, 1)
    assert rig.switch.connections(new.key) == [new.id]


async def test_closing_the_active_of_two_leaves_the_other(rig: Rig) -> None:
    first, second = await rig.join("a"), await rig.join("a")
    await rig.leave(second)
    assert await active(rig, first) is first
    assert duplicates(rig) == (0, 0, 1)
    # And it is an ordinary client again: a newcomer makes a new set.
    third = await rig.join("a")
    assert await active(rig, first, third) is third
    assert duplicates(rig) == (1, 2, 2)


async def test_closing_a_silent_one_of_three_changes_nothing(rig: Rig) -> None:
    first, second, third = [await rig.join("a") for _ in range(3)]
    await rig.leave(second)
    assert await active(rig, first, third) is third
    assert duplicates(rig) == (1, 2, 2)


async def test_closing_the_last_that_spoke_brings_back_the_one_before(
    rig: Rig,
) -> None:
    first, second, third = [await rig.join("a") for _ in range(3)]
    for speaker in (second, first, third, second, first):
        speaker.send(SPEECH[0])
        await rig.settle()
    assert await active(rig, first, second, third) is first
    await rig.leave(first)
    assert await active(rig, second, third) is second


async def test_third_counts_as_having_spoken_and_the_second_does_not(
    rig: Rig,
) -> None:
    """derpserver.go registerClient: sendHistory is [first], then the later."""
    first, second, third, fourth = [await rig.join("a") for _ in range(4)]
    await rig.leave(fourth)
    assert await active(rig, first, second, third) is third
    await rig.leave(third)
    assert await active(rig, first, second) is first


async def test_six_silent_ones_leave_in_any_order(rig: Rig) -> None:
    """However they leave, one of them is active as long as there is one."""
    rng = random.Random(1)
    for _ in range(20):
        peers = [await rig.join("a") for _ in range(6)]
        while peers:
            await rig.leave(peers.pop(rng.randrange(len(peers))))
            if peers:
                assert await active(rig, *peers) in peers
    assert duplicates(rig)[:2] == (0, 0)
    assert sum(rig.counters.packets_dropped.values()) == 0


async def test_duplicates_are_the_model(rig: Rig) -> None:
    """Random joins, leaves and speech against derper's rules, written plainly."""
    rng = random.Random(7)
    peers: list[Peer] = []
    last: Peer | None = None  # derpserver.go dupClientSet.last
    history: list[Peer] = []  # and sendHistory, not trimmed
    for _ in range(300):
        action = rng.choice(("join", "leave", "speak", "speak"))
        if action == "join" and len(peers) < 6:
            new = await rig.join("a")
            if len(peers) == 1:
                history = [peers[0]]
            elif peers:
                history.append(new)
            last = new
            peers.append(new)
        elif action == "leave" and peers:
            gone_one = peers.pop(rng.randrange(len(peers)))
            await rig.leave(gone_one)
            history = [peer for peer in history if peer is not gone_one]
            if last is gone_one:
                last = history[-1] if history else None
            if len(peers) == 1:
                last = peers[0]
        elif action == "speak" and peers:
            speaker = rng.choice(peers)
            speaker.send(rng.choice(SPEECH))
            await rig.settle()
            if len(peers) > 1:
                history.append(speaker)
                last = speaker
        if peers:
            assert await active(rig, *peers) is last


async def test_each_duplicate_gets_its_own_keep_alives(rig: Rig) -> None:
    first = await rig.join("a")
    await trio.sleep(10)
    second = await rig.join("a")
    await trio.sleep(50)
    await rig.settle()
    assert (len(first.received()), len(second.received())) == (1, 0)
    await trio.sleep(10)
    await rig.settle()
    assert (len(first.received()), len(second.received())) == (0, 1)


async def test_packets_queued_for_a_duplicate_stay_with_it(rig: Rig) -> None:
    first = await rig.join("a", buffers=4096)
    sender = await rig.join("b")
    for i in range(30):
        sender.send_packet(first, bytes([i]) * 1000)
    await rig.settle()
    second = await rig.join("a")
    sender.send_packet(first, b"for the new one")
    await rig.settle()
    assert second.packets() == [b"for the new one"]
    got = []
    for _ in range(40):
        got += first.packets()
        await rig.settle()
    assert got == [bytes([i]) * 1000 for i in range(30)]


# -- PeerGone ---------------------------------------------------------------


async def test_who_had_a_packet_hears_of_the_leave_once(any_rig: Rig) -> None:
    rig = any_rig
    a, b, c = [await rig.join(name) for name in "abc"]
    for _ in range(3):
        a.send_packet(b, b"packet")
    b.send_packet(a, b"packet")
    await rig.settle()
    assert len(b.packets()) == 3
    await rig.leave(a)
    assert b.received() == [gone(a)]
    assert c.received() == []
    await trio.sleep(30)
    assert b.received() == []
    assert rig.counters.peer_gone_disconnected_frames == 1


async def test_having_sent_is_not_having_had(rig: Rig) -> None:
    a, b = await rig.join("a"), await rig.join("b")
    b.send_packet(a, b"never answered")
    await rig.settle()
    await rig.leave(a)
    assert b.received() == []


async def test_no_peer_gone_while_a_duplicate_remains(rig: Rig) -> None:
    first, second = await rig.join("a"), await rig.join("a")
    b = await rig.join("b")
    first.send_packet(b, b"from the first")
    second.send_packet(b, b"from the second")
    await rig.settle()
    b.received()
    await rig.leave(first)
    assert b.received() == []
    await rig.leave(second)
    assert b.received() == [gone(second)]


async def test_peer_that_comes_back_is_followed_again(rig: Rig) -> None:
    """An intended difference.

    derper's memory of having subscribed lasts as long as the connection, so
    that the second leave is told to nobody who knew of the first.
    """
    b = await rig.join("b")
    for _ in range(3):
        a = await rig.join("a")
        a.send_packet(b, b"here I am")
        await rig.settle()
        assert b.packets() == [b"here I am"]
        await rig.leave(a)
        assert b.received() == [gone(a)]
    a = await rig.join("a")
    await rig.leave(a)  # without a packet
    assert b.received() == []


async def test_every_connection_of_a_key_that_had_a_packet_hears(rig: Rig) -> None:
    a, b1 = await rig.join("a"), await rig.join("b")
    a.send_packet(b1, b"1")
    await rig.settle()
    b2 = await rig.join("b")
    a.send_packet(b1, b"2")
    await rig.settle()
    b3 = await rig.join("b")
    assert (b1.packets(), b2.packets()) == ([b"1"], [b"2"])
    await rig.leave(a)
    assert (b1.received(), b2.received(), b3.received()) == ([gone(a)], [gone(a)], [])


async def test_sending_to_oneself_and_leaving(rig: Rig) -> None:
    first, second = await rig.join("a"), await rig.join("a")
    first.send_packet(first, b"me")
    second.send_packet(second, b"me too")
    await rig.settle()
    assert first.packets() == [b"me"]
    await rig.leave(first)
    await rig.leave(second)
    assert rig.counters.peer_gone_disconnected_frames == 0


async def test_a_crowd_leaves_together(rig: Rig) -> None:
    """Everybody knows everybody; all leave before the switch has seen any."""
    crowd = [await rig.join(f"peer {i}") for i in range(12)]
    for sender in crowd:
        for receiver in crowd:
            sender.send_packet(receiver, disco())
    await rig.settle()
    for peer in crowd[:-1]:
        peer.close()
    await rig.settle()
    survivor = crowd[-1]
    frames = survivor.received()
    assert frames[:12] == [RecvPacket(p.key, disco()) for p in crowd]
    assert len(frames) == 12 + 11
    assert set(frames[12:]) == {gone(peer) for peer in crowd[:-1]}
    assert rig.counters.clients == 1


async def test_old_packets_do_not_outlive_the_subscription(rig: Rig) -> None:
    """A receiver that left and came back knows nobody any more."""
    a, b = await rig.join("a"), await rig.join("b")
    a.send_packet(b, b"to the first life")
    await rig.settle()
    await rig.leave(b)
    b = await rig.join("b")
    await rig.leave(a)
    assert b.received() == []
