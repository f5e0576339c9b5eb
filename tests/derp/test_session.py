"""One connection: batches, answers, deadlines, and how it may end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from tailnet.derp.events import ClientDropReason, ClientLimits, ClientStatistics
from tailnet.derp.frames import (
    Health,
    KeepAlive,
    NotePreferred,
    PeerGone,
    PeerPresent,
    PeerPresentFlags,
    Ping,
    RecvPacket,
    Restarting,
    SendPacket,
    ServerFrame,
    UnknownFrame,
)
from tailnet.derp.handshake import ClientInfo, ServerInfo, encode_server_info
from tailnet.derp.login import Way, log_in
from tailnet.derp.session import Session
from tailnet.derp.websocket import WebsocketStream
from tailnet.errors import LocalProtocolError, NotConnectedError
from tests.derp.memory_relay import (
    CLIENT_KEY,
    NODE,
    PEER,
    RELAY_KEY,
    MemoryRelay,
    RelayEnd,
)


@dataclass
class Running:
    """A session that runs, and the relay's end of it."""

    session: Session
    end: RelayEnd
    counters: ClientStatistics
    delivered: list[object] = field(default_factory=list)
    reason: str | None = None  # why it has ended
    ended_at: float = -1.0

    async def ending(self) -> str:
        """Wait for the end, which must not take ten virtual minutes."""
        with trio.fail_after(600):
            while self.reason is None:
                await trio.sleep(0.5)
        return self.reason


@asynccontextmanager
async def running(
    *, info: ServerInfo | None = None, limits: ClientLimits | None = None
) -> AsyncIterator[Running]:
    """A session, logged in, with nothing sent but NotePreferred."""
    relay = MemoryRelay()
    ends: list[RelayEnd] = []

    async def admit() -> None:
        ends.append(await relay.admit(info))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(admit)
        login = await log_in(
            Way([NODE], connect=relay.connect),
            CLIENT_KEY,
            ClientInfo(),
            preferred=True,
        )
    end = ends[0]
    assert await end.next_frame() == NotePreferred(True)
    counters = ClientStatistics()
    delivered: list[object] = []
    session = Session(login, limits or ClientLimits(), counters, delivered.append)
    state = Running(session, end, counters, delivered)

    async def run() -> None:
        state.reason = await session.run()
        state.ended_at = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield state
        session.close("the test is over")


# -- sending ----------------------------------------------------------------


async def test_what_is_queued_goes_in_one_write(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        packets = [b"one", b"", b"three" * 1000]
        for packet in packets:
            run.session.put(PEER, packet)
        assert run.session.waiting == 3
        assert [await run.end.next_frame() for _ in packets] == [
            SendPacket(PEER, packet) for packet in packets
        ]
        assert run.session.waiting == 0
        await run.session.wait_written()
        assert (run.counters.writes, run.counters.packets_sent) == (1, 3)
        assert run.counters.bytes_sent == sum(map(len, packets))


class Stuck(trio.abc.Stream):
    """A stream whose first write lasts until it is released."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.released = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.released.wait()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_a_full_queue_drops_its_oldest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(limits=ClientLimits(send_packets=3)) as run:
        stuck = Stuck(run.session.login.channel.stream)
        run.session.login.channel.stream = stuck
        run.session.put(PEER, b"in flight")
        await trio.testing.wait_all_tasks_blocked()
        for number in range(5):
            assert run.session.fits(b"x") == (number < 3)
            run.session.put(PEER, b"%d" % number)
        stuck.released.set()
        got = [await run.end.next_frame() for _ in range(4)]
        assert got == [SendPacket(PEER, p) for p in (b"in flight", b"2", b"3", b"4")]
        assert run.counters.packets_dropped[ClientDropReason.QUEUE_HEAD] == 2


async def test_what_waits_at_the_end_is_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        run.session.login.channel.stream = Stuck(run.session.login.channel.stream)
        run.session.put(PEER, b"in flight")
        await trio.testing.wait_all_tasks_blocked()
        run.session.put(PEER, b"a")
        run.session.put(PEER, b"b")
        run.session.close("enough")
        assert await run.ending() == "enough"
        assert run.session.ended
        # Nobody knows of the one in flight; it was not sent, for all we know.
        assert run.counters.packets_sent == 0
        assert run.counters.packets_dropped[ClientDropReason.GONE_DISCONNECTED] == 2
        await run.session.wait_written()


async def test_a_packet_that_is_too_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        with pytest.raises(LocalProtocolError):
            run.session.put(PEER, bytes(65537))
        run.session.put(PEER, bytes(65536))
        assert await run.end.next_frame() == SendPacket(PEER, bytes(65536))


async def test_the_relays_limit_is_obeyed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """derp_client.go: header and key count too, and what is over it drops."""
    info = ServerInfo(token_bucket_rate=1000, token_bucket_burst=500)
    async with running(info=info) as run:
        for number in range(6):  # 37 + 63 = 100 bytes each
            run.session.put(PEER, bytes([number]) * 63)
        await trio.sleep(0.1)
        run.session.put(PEER, bytes([6]) * 63)
        run.session.put(PEER, bytes([7]) * 63)
        await run.session.wait_written()
        assert [await run.end.next_frame() for _ in range(6)] == [
            SendPacket(PEER, bytes([number]) * 63) for number in (0, 1, 2, 3, 4, 6)
        ]
        assert run.counters.packets_dropped[ClientDropReason.RATE_LIMIT] == 2


async def test_a_later_server_info_changes_the_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    info = ServerInfo(token_bucket_rate=1, token_bucket_burst=1)
    async with running(info=info) as run:
        run.session.put(PEER, b"dropped")
        client = CLIENT_KEY.public()
        later = encode_server_info(RELAY_KEY, client, ServerInfo())
        await run.end.stream.send_all(later)
        await trio.testing.wait_all_tasks_blocked()
        run.session.put(PEER, b"sent")
        assert await run.end.next_frame() == SendPacket(PEER, b"sent")
        # A bad one ends the connection, at any time.
        await run.end.stream.send_all(later[:-1] + b"?")
        assert "broke the protocol" in await run.ending()


async def test_note_preferred(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as run:
        run.session.note_preferred(preferred=False)
        assert await run.end.next_frame() == NotePreferred(False)


# -- receiving --------------------------------------------------------------


FRAMES: list[ServerFrame] = [
    RecvPacket(PEER, b"packet"),
    RecvPacket(PEER, b""),
    RecvPacket(PEER, bytes(65536)),
    PeerGone(PEER, 1),
    PeerPresent(PEER, None, 0, PeerPresentFlags(1)),
    Health("bad"),
    Health(""),
    Restarting(0.2, 2.0),
]


async def test_frames_for_the_user_come_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        await run.end.send(*FRAMES)
        await trio.testing.wait_all_tasks_blocked()
        assert run.delivered == FRAMES
        assert (run.counters.packets_received, run.counters.bytes_received) == (
            3,
            6 + 65536,
        )
        # As many reads as 64 KiB each need, however many frames.
        assert run.counters.reads == 2


async def test_frames_cut_anywhere_are_put_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        data = b"".join(run.end.connection.encode(frame) for frame in FRAMES[:2])
        for start in range(0, len(data), 7):
            await run.end.stream.send_all(data[start : start + 7])
            await trio.testing.wait_all_tasks_blocked()
        assert run.delivered == FRAMES[:2]


async def test_frames_right_behind_server_info_are_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    delivered: list[object] = []

    async def admit() -> None:
        end = await relay.accept()
        await end.upgrade()
        await end.admit(None, FRAMES[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(admit)
        login = await log_in(
            Way([NODE], connect=relay.connect), CLIENT_KEY, ClientInfo(), preferred=True
        )
    session = Session(login, ClientLimits(), ClientStatistics(), delivered.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await trio.testing.wait_all_tasks_blocked()
        session.close("")
    assert delivered == [FRAMES[0]]


async def test_a_ping_is_answered_ahead_of_packets(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        await run.end.send(Ping(b"12345678"))
        # To a relay a Pong is a frame that it does not expect.
        assert await run.end.next_frame() == UnknownFrame(0x13, 8)
        await run.session.wait_written()
        assert run.counters.pings_answered == 1
        assert run.delivered == []


async def test_a_flood_of_pings_is_not_answered_one_by_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        await run.end.send(*[Ping(b"12345678")] * 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert run.counters.pings_answered == 16
        assert run.counters.writes == 1


async def test_what_needs_no_attention_is_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        await run.end.send(KeepAlive(), KeepAlive())
        unknown = b"\x7f\x00\x00\x00\x02hi"
        short_gone = b"\x08\x00\x00\x00\x1f" + bytes(31)
        await run.end.stream.send_all(unknown + short_gone)
        await run.end.send(FRAMES[0])
        await trio.testing.wait_all_tasks_blocked()
        assert run.counters.keep_alives == 2
        assert run.counters.unknown_frames == 1
        assert run.delivered == [FRAMES[0]]


async def test_silence_ends_the_session_after_two_minutes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        await trio.sleep(100)
        await run.end.send(KeepAlive())
        await trio.testing.wait_all_tasks_blocked()
        last = trio.current_time()
        assert await run.ending() == "nothing came from the relay for 120 s"
        assert run.ended_at == last + 120
        assert run.counters.keep_alives == 1


async def test_the_relay_hangs_up(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as run:
        await run.end.send(*FRAMES)
        await run.end.stream.aclose()
        assert await run.ending() == "the relay closed the connection"
        assert run.delivered == FRAMES, "what came before the end"


async def test_a_write_finds_the_connection_broken(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        stream = run.end.stream
        assert isinstance(stream, trio.StapledStream)
        await stream.receive_stream.aclose()
        run.session.put(PEER, b"x")
        assert (await run.ending()).startswith("the connection broke")


async def test_a_frame_of_more_than_a_mebibyte(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        await run.end.stream.send_all(b"\x7f\x00\x10\x00\x00")
        await trio.testing.wait_all_tasks_blocked()
        assert run.reason is None, "1 MiB is allowed, of any type"
        await run.end.stream.send_all(bytes(1 << 20) + b"\x7f\x00\x10\x00\x01")
        assert "1048577-byte body" in await run.ending()


async def test_a_session_that_ends_closes_its_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        run.session.close("first")
        run.session.close("second")
        assert await run.ending() == "first"
        assert await run.end.stream.receive_some() == b""


# -- Ping of our own --------------------------------------------------------


async def answer_ping(end: RelayEnd, *, after: float) -> None:
    """Read a Ping and answer it late."""
    ping = await end.next_frame()
    assert isinstance(ping, Ping)
    await trio.sleep(after)
    answer = b"\x13\x00\x00\x00\x08" + ping.data
    await end.stream.send_all(answer + answer)  # the second means nothing


async def test_ping(autojump_clock: trio.testing.MockClock) -> None:
    async with running() as run, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: answer_ping(run.end, after=1.25))
        assert await run.session.ping() == pytest.approx(1.25)


async def test_a_ping_waits_five_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        started = trio.current_time()
        await run.end.stream.send_all(b"\x13\x00\x00\x00\x08" + b"unwanted")
        with pytest.raises(trio.TooSlowError):
            await run.session.ping()
        assert trio.current_time() == started + 5
        assert run.reason is None, "that is for the user to decide"


async def test_a_ping_does_not_outlive_the_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as run:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.end.stream.aclose)
            with pytest.raises(NotConnectedError):
                await run.session.ping()
        assert trio.current_time() == started


# -- websocket --------------------------------------------------------------


@asynccontextmanager
async def in_websocket() -> AsyncIterator[tuple[Running, WebsocketStream]]:
    """A session that is inside a websocket from here on."""
    async with running() as run:
        await run.end.send(KeepAlive())  # the reader now waits for the next
        await trio.testing.wait_all_tasks_blocked()
        run.session.login.channel.websocket = WebsocketStream(server=False)
        yield run, WebsocketStream(server=True)


async def test_packets_in_websocket_messages(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with in_websocket() as (run, websocket):
        data = run.end.connection.encode(FRAMES[2])
        await run.end.stream.send_all(websocket.encode(data))
        run.session.put(PEER, b"hi")
        received = bytes(await run.end.stream.receive_some())
        run.end.connection.receive_data(websocket.receive_data(received))
        assert run.end.connection.next_event() == SendPacket(PEER, b"hi")
        await trio.testing.wait_all_tasks_blocked()
        assert run.delivered == [FRAMES[2]]


async def test_a_ping_of_the_websocket_is_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with in_websocket() as (run, _):
        await run.end.stream.send_all(b"\x89\x00")
        assert (await run.end.stream.receive_some())[:2] == b"\x8a\x80"


@pytest.mark.parametrize("code", [1000, 1001, 1011])
async def test_a_close_of_the_websocket(
    code: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with in_websocket() as (run, websocket):
        data = run.end.connection.encode(FRAMES[0])
        websocket_data = websocket.encode(data)
        websocket.close(code)
        await run.end.stream.send_all(websocket_data + websocket.data_to_send())
        assert await run.ending() == "the relay closed the connection"
        assert run.delivered == [FRAMES[0]]


async def test_text_in_the_websocket(autojump_clock: trio.testing.MockClock) -> None:
    async with in_websocket() as (run, _):
        await run.end.stream.send_all(b"\x81\x02hi")
        assert "binary" in await run.ending()
