"""The client that stays connected: virtual time, a relay on memory streams."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import trio
import trio.testing

from tailnet.derp.client import DerpClient, open_derp_client
from tailnet.derp.connection import ServerConnection
from tailnet.derp.derpmap import DERPRegion
from tailnet.derp.events import (
    ClientDropReason,
    ClientLimits,
    Connected,
    ConnectFailed,
    Disconnected,
)
from tailnet.derp.frames import (
    ClientFrame,
    NotePreferred,
    PeerGone,
    Ping,
    RecvPacket,
    SendPacket,
)
from tailnet.derp.handshake import ClientInfo, ServerInfo
from tailnet.errors import (
    ConnectError,
    DERPMapError,
    LocalProtocolError,
    NotConnectedError,
)
from tests.derp.memory_relay import (
    CLIENT_KEY,
    NODE,
    PEER,
    RELAY_KEY,
    MemoryRelay,
    RelayEnd,
    answering,
    wait_event,
)


def opening(
    relay: MemoryRelay, **options: object
) -> AbstractAsyncContextManager[DerpClient]:
    """A client of ``relay`` whose delays have a random factor of 1."""
    options = {"connect": relay.connect, "random": lambda: 0.5, **options}
    return open_derp_client(CLIENT_KEY, [NODE], **options)  # type: ignore[arg-type]


async def login(
    relay: MemoryRelay, client: DerpClient, info: ServerInfo | None = None
) -> RelayEnd:
    """Bring a client's next connection up, and take the Connected event."""
    with trio.fail_after(600):
        end = await relay.admit(info)
        assert isinstance(await client.receive(), Connected)
        assert await end.next_frame() == NotePreferred(True)
    return end


async def rest_of(end: RelayEnd) -> list[ClientFrame]:
    """All frames up to the end of a connection."""
    frames = []
    with trio.fail_after(600), suppress(trio.EndOfChannel):
        while True:
            frames.append(await end.next_frame())
    return frames


# -- connecting -------------------------------------------------------------


async def test_connected_says_to_what(autojump_clock: trio.testing.MockClock) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        assert client.connection is None
        assert client.public_key == CLIENT_KEY.public()
        info = ServerInfo(token_bucket_rate=10, token_bucket_burst=20)
        end = await relay.admit(info)
        connected = Connected(
            server_key=RELAY_KEY.public(),
            server_info=info,
            node=NODE,
            remote="derp.test:3340",
            fast_start=False,
            websocket=False,
            tls_version=None,
        )
        assert await client.wait_connected() == connected
        assert client.connection == connected
        assert await client.receive() == connected
        assert end.hello is not None
        assert end.hello.info == ClientInfo(can_ack_pings=True)


async def test_a_region_gives_its_nodes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    region = DERPRegion(900, nodes=(replace(NODE, stun_only=True), NODE))
    async with open_derp_client(CLIENT_KEY, region, connect=relay.connect) as client:
        await relay.admit()
        assert (await client.wait_connected()).node == NODE


@pytest.mark.parametrize("nodes", [None, (), (replace(NODE, stun_only=True),)])
async def test_a_region_without_relay(
    nodes: tuple[()] | None, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(DERPMapError, match="region 901: Nodes has no relay"):
        async with open_derp_client(CLIENT_KEY, DERPRegion(901, nodes=nodes)):
            pass


async def test_attempts_that_fail_are_events_with_growing_delays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay(refusing=True)
    started: list[float] = []

    async def connect(*args: object) -> trio.abc.Stream:
        started.append(trio.current_time())
        return await relay.connect(*args)  # type: ignore[arg-type]

    async with opening(relay, connect=connect) as client:
        events = [await wait_event(client, ConnectFailed) for _ in range(30)]
        assert client.statistics().connect_attempts == 30
        assert client.statistics().connects == 0
    assert events[0] == ConnectFailed("900a: refused", 1, 0.01)
    delays = [min(n * n * 0.01, 5.0) for n in range(1, 31)]
    assert [event.retry_in for event in events] == pytest.approx(delays)
    assert [event.failures for event in events] == list(range(1, 31))
    gaps = [b - a for a, b in pairwise(started)]
    assert gaps == pytest.approx(delays[: len(gaps)])


async def test_a_lost_connection_is_made_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        for _ in range(3):
            end = await login(relay, client)
            await end.stream.aclose()
            lost = await client.receive()
            # Each success begins the delays anew.
            assert lost == Disconnected("the relay closed the connection", 0.01)
            assert client.connection is None
        end = await login(relay, client)
        await end.send(RecvPacket(PEER, b"still here"))
        assert await client.receive() == RecvPacket(PEER, b"still here")
        assert client.statistics().connects == 4


async def test_a_silent_relay_is_left_after_two_minutes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        await login(relay, client)
        connected_at = trio.current_time()
        lost = await wait_event(client, Disconnected)
        assert lost.reason == "nothing came from the relay for 120 s"
        assert trio.current_time() == connected_at + 120


async def test_reconnect(autojump_clock: trio.testing.MockClock) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        client.reconnect("there is nothing to give up")
        await login(relay, client)
        client.reconnect("the address is gone")
        assert (await wait_event(client, Disconnected)).reason == "the address is gone"
        await login(relay, client)


async def test_headers_are_asked_for_anew_for_each_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    count = 0

    def headers() -> list[tuple[str, str]]:
        nonlocal count
        count += 1
        return [("Authorization", f"Bearer {count}")]

    async with opening(relay, headers=headers) as client:
        for number in (1, 2):
            end = await login(relay, client)
            assert b"\r\nAuthorization: Bearer %d\r\n" % number in end.request
            client.reconnect("")
            await wait_event(client, Disconnected)


async def test_headers_from_an_async_function(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    started: list[float] = []

    async def headers() -> list[tuple[str, str]]:
        started.append(trio.current_time())
        if len(started) == 1:
            raise OSError("the helper is not there")
        if len(started) == 2:
            raise ConnectError("the helper said no")
        if len(started) == 3:
            await trio.sleep_forever()
        await trio.sleep(1)
        return [("Authorization", f"Bearer {len(started)}")]

    async with opening(relay, headers=headers) as client:
        reasons = [(await wait_event(client, ConnectFailed)).reason for _ in range(3)]
        assert reasons == [
            "no headers: the helper is not there",
            "the helper said no",
            "no headers within 10.0 s",
        ]
        end = await login(relay, client)
        assert b"\r\nAuthorization: Bearer 4\r\n" in end.request
        assert client.statistics().dials_by_node == {"900a": 1}


# -- sending ----------------------------------------------------------------


async def test_send_waits_for_a_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay(refusing=True)
    async with opening(relay) as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.send, PEER, b"patience")
        await trio.sleep(30)
        relay.refusing = False
        end = await relay.admit()
        assert await end.next_frame() == NotePreferred(True)
        assert await end.next_frame() == SendPacket(PEER, b"patience")


async def test_send_raises_if_it_shall_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay, wait_while_disconnected=False) as client:
        with pytest.raises(NotConnectedError):
            await client.send(PEER, b"x")
        end = await login(relay, client)
        await client.send(PEER, b"y")
        assert await end.next_frame() == SendPacket(PEER, b"y")
        client.reconnect("")
        await wait_event(client, Disconnected)
        with pytest.raises(NotConnectedError):
            await client.send(PEER, b"z")


async def test_what_never_waits_raises_without_a_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        with pytest.raises(NotConnectedError):
            client.send_nowait(PEER, b"x")
        with pytest.raises(NotConnectedError):
            await client.ping()
        await client.flush()  # nothing to wait for
        assert client.statistics().packets_sent == 0


async def test_send_many_waits_for_room_and_keeps_the_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay, limits=ClientLimits(send_packets=8)) as client:
        end = await login(relay, client)
        await client.send_many((PEER, b"%d" % n) for n in range(100))
        await client.flush()
        got = [await end.next_frame() for _ in range(100)]
        assert got == [SendPacket(PEER, b"%d" % n) for n in range(100)]
        statistics = client.statistics()
        assert statistics.packets_sent == 100
        assert statistics.writes == 13  # 100 / 8
        assert sum(statistics.packets_dropped.values()) == 0


async def test_send_nowait_drops_the_oldest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay, limits=ClientLimits(send_packets=8)) as client:
        end = await login(relay, client)
        for n in range(20):
            client.send_nowait(PEER, b"%d" % n)
        assert client.statistics().send_queue_packets == 8
        got = [await end.next_frame() for _ in range(8)]
        assert got == [SendPacket(PEER, b"%d" % n) for n in range(12, 20)]
        dropped = client.statistics().packets_dropped
        assert dropped[ClientDropReason.QUEUE_HEAD] == 12


async def test_a_packet_that_is_too_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client, answering(relay):
        await client.wait_connected()
        with pytest.raises(LocalProtocolError):
            await client.send(PEER, bytes(65537))
        with pytest.raises(LocalProtocolError):
            client.send_nowait(PEER, bytes(65537))
        assert client.connection is not None


async def test_waiting_for_room_survives_a_lost_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The rest of a batch goes to the next connection."""
    relay = MemoryRelay()
    async with opening(relay, limits=ClientLimits(send_packets=2)) as client:
        end = await login(relay, client)
        stream = end.stream
        assert isinstance(stream, trio.StapledStream)
        await stream.receive_stream.aclose()  # the first write breaks it
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_many, [(PEER, b"%d" % n) for n in range(6)])
            await wait_event(client, Disconnected)
            end = await login(relay, client)
        await client.flush()
        client.reconnect("")
        got = await rest_of(end)
        assert got
        assert got == [SendPacket(PEER, b"%d" % n) for n in range(6)][-len(got) :]


async def test_leaving_flushes(autojump_clock: trio.testing.MockClock) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        end = await login(relay, client)
        await client.send(PEER, b"last words")
    assert await rest_of(end) == [SendPacket(PEER, b"last words")]


# -- receiving --------------------------------------------------------------


async def test_receive_many_takes_all_there_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        end = await login(relay, client)
        packets = [RecvPacket(PEER, b"%d" % n) for n in range(50)]
        await end.send(*packets, PeerGone(PEER, 0))
        await trio.testing.wait_all_tasks_blocked()
        assert await client.receive_many() == [*packets, PeerGone(PEER, 0)]


async def test_iterating_gives_the_events(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        end = await login(relay, client)
        await end.send(RecvPacket(PEER, b"1"), PeerGone(PEER, 1))
        await end.stream.aclose()
        seen = []
        async for event in client:
            seen.append(event)
            if isinstance(event, Disconnected):
                break
        assert seen == [
            RecvPacket(PEER, b"1"),
            PeerGone(PEER, 1),
            Disconnected("the relay closed the connection", 0.01),
        ]


async def test_several_tasks_receive(autojump_clock: trio.testing.MockClock) -> None:
    relay = MemoryRelay()
    got: list[object] = []

    async def take() -> None:
        got.append(await client.receive())

    async with opening(relay) as client:
        end = await login(relay, client)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(take)
                await trio.testing.wait_all_tasks_blocked()
                await end.send(*(RecvPacket(PEER, b"%d" % n) for n in range(3)))
    assert sorted(map(repr, got)) == [
        repr(RecvPacket(PEER, b"%d" % n)) for n in range(3)
    ]


async def test_what_nobody_takes_drops_and_the_connection_lives(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    limits = ClientLimits(receive_packets=10)
    async with opening(relay, limits=limits) as client:
        end = await login(relay, client)
        await end.send(*(RecvPacket(PEER, b"%d" % n) for n in range(25)))
        await end.send(Ping(b"12345678"))
        await end.next_frame()  # the Pong
        dropped = client.statistics().packets_dropped
        assert dropped[ClientDropReason.RECEIVE_QUEUE_HEAD] == 15
        kept = await client.receive_many()
        assert kept == [RecvPacket(PEER, b"%d" % n) for n in range(15, 25)]
        assert client.statistics().packets_received == 25


async def test_the_bytes_that_nobody_takes_are_bounded_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    limits = ClientLimits(receive_bytes=10_000)
    async with opening(relay, limits=limits) as client:
        end = await login(relay, client)
        await end.send(*[RecvPacket(PEER, bytes(936))] * 25)
        await trio.testing.wait_all_tasks_blocked()
        assert len(await client.receive_many()) == 10


# -- the end ----------------------------------------------------------------


async def test_after_the_block_nothing_works(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        end = await login(relay, client)
        await end.send(RecvPacket(PEER, b"nobody asked"))
    calls: list[Callable[[], object]] = [
        client.receive,
        client.receive_many,
        client.wait_connected,
        client.ping,
        partial(client.send, PEER, b""),
    ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError):
            await call()  # type: ignore[misc]
    with pytest.raises(trio.ClosedResourceError):
        client.send_nowait(PEER, b"")
    assert client.statistics().connected is False


async def test_those_who_wait_at_the_end_are_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay(refusing=True)
    told: list[str] = []

    async def expect(call: Callable[[], object], name: str) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call()  # type: ignore[misc]
        told.append(name)

    async with trio.open_nursery() as nursery, opening(relay) as client:
        nursery.start_soon(expect, client.wait_connected, "connected")
        nursery.start_soon(expect, partial(client.send, PEER, b""), "send")
        await wait_event(client, ConnectFailed)
        nursery.start_soon(expect, partial(wait_event, client, Connected), "event")
        await trio.testing.wait_all_tasks_blocked()
    assert sorted(told) == ["connected", "event", "send"]


async def test_an_exception_of_the_block_comes_out_as_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    ends = []

    async def fail() -> None:
        async with opening(relay):
            ends.append(await relay.admit())
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    assert await rest_of(ends[0]) == [NotePreferred(True)]


async def test_cancelling_the_block_closes_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    with trio.move_on_after(5) as scope:
        async with opening(relay) as client:
            end = await login(relay, client)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 5
    assert await rest_of(end) == []


async def test_a_flush_that_hangs_does_not_hold_up_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = trio.testing.lockstep_stream_pair()

    async def connect(*_: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return near

    relay = MemoryRelay()
    async with opening(relay, connect=connect) as client:
        end = RelayEnd(far, ServerConnection(RELAY_KEY))
        await end.upgrade()
        await end.admit()
        await client.wait_connected()
        await client.send(PEER, b"never read")
        left = trio.current_time()
    assert trio.current_time() == left + 1
