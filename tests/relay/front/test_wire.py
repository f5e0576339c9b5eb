"""A client's bytes while it is nobody's yet."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from relay.front.tls import PureTls, TlsError
from relay.front.wire import LINGER_TIME, Wire
from tests.doubles import TlsClient, server_context


def pair(*, tls: bool = False) -> tuple[Wire, socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(5)
    return Wire(near, PureTls(server_context()) if tls else None), far


async def test_plain_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    wire, far = pair()
    with far:
        await wire.start_tls()  # there is none
        far.sendall(b"in")
        assert await wire.receive() == b"in"
        await wire.send(b"out")
        assert far.recv(9) == b"out"
        far.shutdown(socket.SHUT_WR)
        assert await wire.receive() == b""
        wire.close()
        assert far.recv(9) == b""
        wire.close()


async def test_tls_both_ways_and_what_comes_with_the_handshake(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire, far = pair(tls=True)
    client = TlsClient()
    with far:
        far.sendall(client.handshake())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.start_tls)
            await trio.testing.wait_all_tasks_blocked()
            # The end of the handshake and the first data in one piece.
            far.sendall(client.handshake(far.recv(1 << 16)) + client.encode(b"early"))
        assert await wire.receive() == b"early"
        far.sendall(client.encode(b"later"))
        assert await wire.receive() == b"later"
        await wire.send(b"out")
        assert client.decode(far.recv(1 << 16)) == b"out"
        wire.close()
        client.decode(far.recv(1 << 16))
        assert client.closed


async def test_no_tls_from_the_client_gets_an_alert(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire, far = pair(tls=True)
    with far:
        far.sendall(b"\x16\x03\x01\0\x05hello")
        with pytest.raises(TlsError):
            await wire.start_tls()
        assert far.recv(9)[:1] == b"\x15"
        wire.close()


async def test_hanging_up_in_the_handshake(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire, far = pair(tls=True)
    far.close()
    with pytest.raises(TlsError, match="hung up"):
        await wire.start_tls()
    wire.close()


async def test_sending_waits_for_room(autojump_clock: trio.testing.MockClock) -> None:
    wire, far = pair()
    data = bytes(range(256)) * 10_000
    got = b""
    with far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, data)
            while len(got) < len(data):
                await trio.testing.wait_all_tasks_blocked()
                got += far.recv(1 << 20)
        assert got == data
        wire.close()


async def test_release_gives_everything_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire, far = pair(tls=True)
    sock, tls = wire.release()
    with far, sock:
        assert tls is wire.tls
        wire.close()  # not ours any more
        sock.send(b"x")
        assert far.recv(1) == b"x"
        with pytest.raises(trio.ClosedResourceError):
            await wire.receive()
        with pytest.raises(trio.ClosedResourceError):
            wire.release()


async def test_lingering_lets_the_answer_be_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire, far = pair()
    with far:
        await wire.send(b"431")
        far.sendall(b"still sending")
        started = trio.current_time()
        await wire.linger()
        assert trio.current_time() - started == LINGER_TIME
        wire.close()
        assert far.recv(9) == b"431"
        assert far.recv(9) == b""


async def test_silence_can_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    for tls in (False, True):
        wire, far = pair(tls=tls)
        with far, trio.move_on_after(10) as scope:
            await wire.start_tls()
            await wire.receive()
        assert scope.cancelled_caught
        wire.close()


@pytest.mark.parametrize("last", [b"", b"last"])
async def test_goodbye_with_the_end_of_the_handshake(
    autojump_clock: trio.testing.MockClock, last: bytes
) -> None:
    """It was forgotten, and the wire waited for more until the deadline."""
    wire, far = pair(tls=True)
    client = TlsClient()
    with far, trio.fail_after(5):
        far.sendall(client.handshake())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.start_tls)
            await trio.testing.wait_all_tasks_blocked()
            finished = client.handshake(far.recv(1 << 16))
            far.sendall(finished + client.encode(last) + client.close())
        if last:
            assert await wire.receive() == last
        assert await wire.receive() == b""
        wire.close()


async def test_what_the_kernel_does_not_take_is_kept_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire, far = pair()
    parts = [bytes([i]) * 50_000 for i in range(40)]
    with far:
        for part in parts:
            wire.send_nowait(part)
        assert wire.unsent
        received = bytearray()
        async with trio.open_nursery() as nursery:
            # Several may wait for the same end.
            nursery.start_soon(wire.flush)
            nursery.start_soon(wire.flush)
            while len(received) < 2_000_000:
                await trio.testing.wait_all_tasks_blocked()
                received += far.recv(1 << 20)
        assert received == b"".join(parts)
        assert not wire.unsent
        wire.close()


async def test_a_broken_connection_is_told_by_flush_not_by_send_nowait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire, far = pair()
    far.close()
    wire.send_nowait(b"to nobody")
    wire.send_nowait(b"to nobody")
    assert wire.unsent == 0  # nothing is kept for nobody
    with pytest.raises(BrokenPipeError):
        await wire.flush()
    wire.close()
