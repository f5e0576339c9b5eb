"""One call: credit, queues, and its ends, as a peer by hand sees them."""

from __future__ import annotations

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from tailnet.control.calls import MAX_WAITING_MESSAGES
from tailnet.control.drpc import Kind, Packet, encode_packet
from tailnet.control.server import Handler, ServerCall
from tailnet.control.yamux import CLOSE_TIMEOUT
from tailnet.control.yamux_frames import ACK, FIN, INITIAL_WINDOW, RST
from tailnet.errors import LocalProtocolError
from tests.control.raw_peer import raw_client, request

METHOD = "/test.Test/Method"
HALF = INITIAL_WINDOW // 2


class Gate:
    """A handler that takes a message whenever the test says so."""

    def __init__(self) -> None:
        self.call: ServerCall | None = None
        self.taken: list[bytes | None] = []
        self._tickets = trio.Semaphore(0)

    async def __call__(self, call: ServerCall) -> None:
        self.call = call
        while True:
            await self._tickets.acquire()
            message = await call.receive()
            self.taken.append(message)
            if message is None:
                return

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._tickets.release()


# -- receiving --------------------------------------------------------------


async def test_credit_follows_the_reader(autojump_clock: MockClock) -> None:
    gate = Gate()
    async with raw_client({METHOD: gate}) as peer:
        peer.open(1, request(METHOD, *[bytes(50_000)] * 5, done=False))
        await peer.settle()
        assert peer.credit(1) == 0
        gate.let(2)
        await peer.settle()
        assert peer.credit(1) == 0
        gate.let()  # 150,000 are more than half
        await peer.settle()
        assert HALF <= peer.credit(1) <= 150_100
        gate.let(3)
        await peer.settle()
        assert peer.credit(1) == pytest.approx(150_000, abs=100)
        assert len(gate.taken) == 5
        peer.fin(1)


async def test_a_message_longer_than_the_window(autojump_clock: MockClock) -> None:
    """Nobody has taken a thing, yet the peer may send the rest of it."""
    gate = Gate()
    message = bytes(3 * INITIAL_WINDOW)
    wire = request(METHOD, message)
    async with raw_client({METHOD: gate}) as peer:
        peer.open(1)
        sent, allowed = 0, INITIAL_WINDOW
        while sent < len(wire):
            piece = wire[sent : min(allowed, sent + 100_000)]
            assert piece, "no credit for the rest"
            peer.data(1, piece)
            sent += len(piece)
            await peer.settle()
            allowed = INITIAL_WINDOW + peer.credit(1)
        gate.let(2)
        await peer.settle()
        assert gate.taken == [message, None]
        # All has been taken, so nearly all of the window is open.
        assert INITIAL_WINDOW + peer.credit(1) - sent > HALF


async def test_whole_messages_wait_for_their_reader(autojump_clock: MockClock) -> None:
    """The peer cannot fill the memory with small messages."""
    gate = Gate()
    async with raw_client({METHOD: gate}) as peer:
        wire, count = request(METHOD, done=False), 0
        while len(wire) < INITIAL_WINDOW - 70:
            wire += encode_packet(Kind.MESSAGE, 1, 1000 + count, b"abc" * 20)
            count += 1
        peer.open(1, wire)
        await peer.settle()
        assert gate.call is not None
        assert len(gate.call._messages) == MAX_WAITING_MESSAGES
        assert peer.credit(1) == 0
        gate.let(count)
        await peer.settle()
        assert gate.taken == [b"abc" * 20] * count
        assert peer.credit(1) >= HALF


async def test_end_of_the_stream_comes_behind_the_messages(
    autojump_clock: MockClock,
) -> None:
    gate = Gate()
    async with raw_client({METHOD: gate}) as peer:
        messages = [b"%d" % i for i in range(100)]
        peer.open(1, request(METHOD, *messages, done=False))
        peer.fin(1)
        await peer.settle()
        assert gate.call is not None
        assert not gate.call.ended
        gate.let(101)
        await peer.settle()
        assert gate.taken == [*messages, None]
        assert gate.call.ended
        assert gate.call.was_cut
        assert peer.flags(1) == [ACK, FIN]
        # Nobody would hear a goodbye.
        assert peer.packets(1) == []


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
async def test_end_of_the_stream_inside_a_message(
    cut: int, autojump_clock: MockClock
) -> None:
    """The call is broken, not only over; what came before it is there."""
    gate = Gate()
    half = encode_packet(Kind.MESSAGE, 1, 3, b"half")[:cut]
    async with raw_client({METHOD: gate}) as peer:
        with structlog.testing.capture_logs() as logs:
            peer.open(1, request(METHOD, b"whole", done=False) + half)
            await peer.settle()
            assert logs == []
            peer.fin(1)
            await peer.settle()
        (entry,) = logs
        assert entry["event"] == "rpc call failed"
        assert entry["reason"] == "the stream ended inside a packet"
        assert peer.flags(1) == [ACK, RST]
        gate.let(2)
        await peer.settle()
        assert gate.taken == [b"whole", None]


@pytest.mark.parametrize(
    ("last", "cut"),
    [
        (encode_packet(Kind.CLOSE, 1, 99), False),
        (encode_packet(Kind.CANCEL, 1, 99, control=True), False),
        (encode_packet(Kind.ERROR, 1, 99, bytes(8) + b"oops"), False),
        (b"", True),
    ],
    ids=["close", "cancel", "error", "reset"],
)
async def test_ends_of_a_call(
    last: bytes, cut: bool, autojump_clock: MockClock
) -> None:
    gate = Gate()
    async with raw_client({METHOD: gate}) as peer:
        peer.open(1, request(METHOD, b"before", done=False) + last)
        if cut:
            peer.rst(1)
        await peer.settle()
        gate.let(2)
        await peer.settle()
        assert gate.taken == [b"before", None]
        call = gate.call
        assert call is not None
        assert call.ended
        assert call.was_cut == cut
        assert (call.end_error is not None) == (b"oops" in last)
        call.send_nowait(b"to nobody")
        assert peer.packets(1) == []
        peer.fin(1)
        await peer.settle()
        assert peer.flags(1) == ([ACK] if cut else [ACK, FIN])


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (encode_packet(Kind.MESSAGE, 1, 1), "packet of kind 2 before the invoke"),
        (request(METHOD) + encode_packet(Kind.MESSAGE, 1, 1), "id monotonicity"),
        (request(METHOD, b"x", done=False) + bytes.fromhex("15010900"), "kind: 10"),
        (
            request(METHOD, done=False) + bytes.fromhex("0501098180 8002"),
            "data overflow",
        ),
    ],
    ids=["no-invoke", "ids", "kind", "overflow"],
)
async def test_bad_packets_end_the_call_alone(
    wire: bytes, reason: str, autojump_clock: MockClock
) -> None:
    gate, other = Gate(), Gate()
    handlers: dict[str, Handler] = {METHOD: gate, "other": other}
    async with raw_client(handlers) as peer:
        peer.open(3, request("other", b"x", done=False))
        with structlog.testing.capture_logs() as logs:
            peer.open(1, wire)
            await peer.settle()
        assert [entry["event"] for entry in logs] == ["rpc call failed"]
        assert reason in logs[0]["reason"]
        assert logs[0]["stream"] == 1
        assert peer.flags(1) == [ACK, RST]
        gate.let(9)
        other.let()
        await peer.settle()
        assert other.taken == [b"x"]
        # The id can be used again, so nothing of the call is left.
        peer.open(1)
        await peer.settle()
        assert peer.flags(1) == [ACK, RST, ACK]
        peer.fin(3)
        other.let()


# -- sending ----------------------------------------------------------------


async def test_messages_wait_for_credit(autojump_clock: MockClock) -> None:
    gate = Gate()
    async with raw_client({METHOD: gate}, capacity=1 << 24) as peer:
        peer.open(1, request(METHOD, done=False))
        await peer.settle()
        call = gate.call
        assert call is not None
        message = bytes(100_000)
        for _ in range(2):
            call.send_nowait(message)
        assert call.backlog == 0
        for _ in range(3):
            call.send_nowait(message)
        assert call.backlog == 3
        # Five messages with their headers, of which a window has gone.
        assert 0 < call.backlog_size - (500_000 - INITIAL_WINDOW) < 100
        # As much as there was credit for has gone, to the byte.
        assert len(peer.received(1)) == INITIAL_WINDOW
        peer.update(1, 0, 100_000)
        await peer.settle()
        assert call.backlog == 2
        assert len(peer.received(1)) == INITIAL_WINDOW + 100_000
        peer.update(1, 0, 1_000_000)
        await peer.settle()
        assert call.backlog == 0
        call.send_nowait(b"small")
        assert [len(p.data) for p in peer.packets(1)] == [100_000] * 5 + [5]
        with pytest.raises(LocalProtocolError, match="4194305 bytes"):
            call.send_nowait(bytes((4 << 20) + 1))
        assert call.backlog == 0


async def test_small_messages_keep_their_order_behind_a_large_one(
    autojump_clock: MockClock,
) -> None:
    gate = Gate()
    async with raw_client({METHOD: gate}) as peer:
        peer.open(1, request(METHOD, done=False))
        await peer.settle()
        call = gate.call
        assert call is not None
        sent = [bytes(300_000), b"1", b"", bytes(70_000), b"2"]
        for message in sent:
            call.send_nowait(message)
        assert call.backlog == 5
        peer.update(1, 0, 1_000_000)
        await peer.settle()
        assert [p.data for p in peer.packets(1)] == sent
        assert [p.message_id for p in peer.packets(1)] == [1, 2, 3, 4, 5]


async def test_backlog_counts_what_the_socket_does_not_take(
    autojump_clock: MockClock,
) -> None:
    gate = Gate()
    async with raw_client({METHOD: gate}, capacity=1000) as peer:
        peer.open(1, request(METHOD, done=False))
        await peer.settle()
        call = gate.call
        assert call is not None
        assert await peer.link.receive()
        for _ in range(10):
            call.send_nowait(bytes(300))
        assert call.backlog == 7
        await peer.link.receive()
        await peer.settle()
        assert 2 < call.backlog < 7
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.read_all)
            await peer.settle()
            assert call.backlog == 0
            call.send_nowait(b"x")
            assert call.backlog == 0
            nursery.cancel_scope.cancel()


async def test_send_waits_for_credit_and_for_the_socket(
    autojump_clock: MockClock,
) -> None:
    sent = 0

    async def stream(call: ServerCall) -> None:
        nonlocal sent
        for _ in range(40):
            await call.send(bytes(10_000))
            sent += 1

    # First for credit: 26 messages and a part of the next.
    async with raw_client({METHOD: stream}, capacity=1 << 24) as peer:
        peer.open(1, request(METHOD))
        await peer.settle()
        assert sent == 26
        peer.update(1, 0, 1 << 20)
        await peer.settle()
        assert sent == 40
        assert peer.packets(1)[-1] == Packet(1, 41, Kind.CLOSE_SEND, b"")
    # Then for the socket: it has 50,000, and as many as are kept.
    sent = 0
    async with raw_client({METHOD: stream}, capacity=50_000) as peer:
        peer.open(1, request(METHOD))
        await peer.settle()
        assert 10 <= sent <= 12
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.read_all)
            await peer.settle()
            assert sent == 26
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_send_ends_with_the_call(how: str, autojump_clock: MockClock) -> None:
    outcome: list[type[Exception]] = []

    async def stream(call: ServerCall) -> None:
        try:
            while True:
                await call.send(bytes(10_000))
        except trio.BrokenResourceError as exc:
            outcome.append(type(exc))
            with pytest.raises(trio.BrokenResourceError):
                await call.send(b"x")
            raise

    async with raw_client({METHOD: stream}, capacity=1 << 24) as peer:
        peer.open(1, request(METHOD, done=False))
        await peer.settle()
        assert outcome == []
        with structlog.testing.capture_logs() as logs:
            getattr(peer, how)(1)
            await peer.settle()
        assert outcome == [trio.BrokenResourceError]
        assert logs == []


async def test_stream_that_the_client_does_not_close(
    autojump_clock: MockClock,
) -> None:
    gate = Gate()
    gate.let(9)
    async with raw_client({METHOD: gate}) as peer:
        peer.open(1, request(METHOD))
        await peer.settle()
        assert peer.packets(1) == [Packet(1, 1, Kind.CLOSE_SEND, b"")]
        assert peer.flags(1) == [ACK]
        # Data for nobody: taken off, and the client gets its credit back.
        for _ in range(4):
            peer.data(1, bytes(HALF))
        await peer.settle()
        assert peer.credit(1) == pytest.approx(4 * HALF, abs=100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.answer_pings)
            await trio.sleep(CLOSE_TIMEOUT + 1)
            assert peer.flags(1) == [ACK, RST]
            nursery.cancel_scope.cancel()
