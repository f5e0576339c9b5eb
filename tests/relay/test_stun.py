from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Self

import pytest
import trio
import trio.testing

from relay import stun
from relay.stun import StunStatistics, open_stun_socket, serve_stun
from tailnet.errors import ConfigError
from tailnet.stun.messages import decode_binding_response

TX_ID = bytes(range(1, 13))
HEADER = "2112a442" + TX_ID.hex()

# A request of Tailscale's, and one that any STUN client sends.
TAILSCALE = bytes.fromhex(f"00010014{HEADER}802200087461696c6e6f646580280004b32c370f")
ORDINARY = bytes.fromhex(f"00010000{HEADER}")

SILENCED = {
    "not STUN": b"hello",
    "empty": b"",
    "a response": bytes.fromhex(f"01010000{HEADER}"),
    "wrong cookie": ORDINARY[:4] + bytes(4) + TX_ID,
    "wrong fingerprint": TAILSCALE[:-1] + b"\x00",
    "cut off": TAILSCALE[:-1],
    "padded": ORDINARY + bytes(3000),
}


class FakeSocket:
    """The part of a socket that answering needs."""

    def __init__(self, error: OSError | None = None) -> None:
        self.error = error
        self.sent: list[tuple[bytes, object]] = []

    def sendto(self, data: bytes, target: object) -> int:
        if self.error is not None:
            raise self.error
        self.sent.append((data, target))
        return len(data)


def answer(
    datagram: bytes,
    source: tuple[str, int] | tuple[str, int, int, int],
    error: OSError | None = None,
) -> tuple[FakeSocket, StunStatistics]:
    sock, statistics = FakeSocket(error), StunStatistics()
    stun._answer(sock, datagram, source, statistics)  # type: ignore[arg-type]
    return sock, statistics


@pytest.mark.parametrize("request_", [TAILSCALE, ORDINARY])
def test_ipv4_source_is_told_its_address(request_: bytes) -> None:
    sock, statistics = answer(request_, ("192.0.2.1", 32853))
    assert sock.sent == [
        (
            bytes.fromhex(f"0101000c{HEADER}002000080001a147e112a643"),
            ("192.0.2.1", 32853),
        )
    ]
    assert statistics == StunStatistics(success=1, ipv4=1)


def test_mapped_source_is_ipv4() -> None:
    source = ("::ffff:192.0.2.1", 32853, 0, 0)
    sock, statistics = answer(TAILSCALE, source)
    (data, target), *_ = sock.sent
    assert target == source
    assert data.endswith(bytes.fromhex("0001a147e112a643"))
    assert statistics == StunStatistics(success=1, ipv4=1)


def test_ipv6_source() -> None:
    sock, statistics = answer(TAILSCALE, ("2001:db8::1", 32853, 0, 0))
    assert sock.sent[0][0] == bytes.fromhex(
        f"01010018{HEADER}002000140002a1470113a9fa0102030405060708090a0b0d"
    )
    assert statistics == StunStatistics(success=1, ipv6=1)


def test_link_local_source_with_its_zone() -> None:
    sock, statistics = answer(TAILSCALE, ("fe80::1%eth0", 1, 0, 2))
    response = decode_binding_response(sock.sent[0][0])
    assert response.ip == ipaddress.ip_address("fe80::1")
    assert statistics.ipv6 == 1


@pytest.mark.parametrize("datagram", SILENCED.values(), ids=SILENCED)
def test_silence_for_everything_else(datagram: bytes) -> None:
    sock, statistics = answer(datagram, ("192.0.2.1", 1))
    assert sock.sent == []
    assert statistics == StunStatistics(not_stun=1)


def test_request_with_a_demand_is_told_what_was_not_understood() -> None:
    # CHANGE-REQUEST (0x0003) of the old RFC 3489.
    sock, statistics = answer(
        bytes.fromhex(f"00010008{HEADER}0003000400000006"), ("192.0.2.1", 1)
    )
    assert sock.sent[0][0][:2] == b"\x01\x11"
    assert b"\x00\x0a\x00\x02\x00\x03" in sock.sent[0][0]
    assert statistics == StunStatistics(not_stun=1)


def test_answer_that_cannot_be_sent_is_counted() -> None:
    for error in (BlockingIOError(11, "full"), OSError(22, "port 0")):
        _, statistics = answer(TAILSCALE, ("192.0.2.1", 0), error)
        assert statistics == StunStatistics(write_error=1, ipv4=1)


async def test_failing_socket_does_not_spin(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failed read is followed by a pause of a second."""

    class BrokenSocket:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *exc: object) -> None:
            self.closed = True

        def recvfrom(self, size: int) -> tuple[bytes, object]:
            raise OSError(5, "Input/output error")

    async def readable(sock: object) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio.lowlevel, "wait_readable", readable)
    statistics, sock = StunStatistics(), BrokenSocket()
    with trio.move_on_after(9.5):
        await serve_stun(sock, statistics)  # type: ignore[arg-type]
    assert statistics == StunStatistics(read_error=10)
    assert sock.closed


@pytest.fixture(params=["", "127.0.0.1", "::1"])
async def server(
    request: pytest.FixtureRequest, nursery: trio.Nursery
) -> AsyncIterator[tuple[str, int, StunStatistics]]:
    statistics = StunStatistics()
    sock = open_stun_socket(request.param, 0)
    await nursery.start(serve_stun, sock, statistics)
    yield request.param, sock.getsockname()[1], statistics
    nursery.cancel_scope.cancel()


async def test_over_loopback(server: tuple[str, int, StunStatistics]) -> None:
    """A burst of more than a batch, by each family that is served."""
    host, port, statistics = server
    families = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    for family, address in families:
        if host not in ("", address):
            continue
        client = trio.socket.socket(family, socket.SOCK_DGRAM)
        with client, trio.fail_after(10):
            await client.bind((address, 0))
            own = client.getsockname()
            for _ in range(stun.BATCH + 10):
                await client.sendto(TAILSCALE, (address, port))
            for _ in range(stun.BATCH + 10):
                response = decode_binding_response(await client.recv(100))
                assert response.tx_id == TX_ID
                assert (str(response.ip), response.port) == own[:2]
    count = (stun.BATCH + 10) * (2 if not host else 1)
    assert statistics.success == count
    assert statistics.ipv4 + statistics.ipv6 == count


async def test_socket_is_closed_at_the_end(nursery: trio.Nursery) -> None:
    sock = open_stun_socket("127.0.0.1", 0)
    await nursery.start(serve_stun, sock, StunStatistics())
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await trio.testing.wait_all_tasks_blocked()
    assert sock.fileno() == -1


def test_port_in_use_is_one_line() -> None:
    with open_stun_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="-stun-port") as caught:
            open_stun_socket("127.0.0.1", port)
    assert f"127.0.0.1:{port}: Address already in use" in str(caught.value)
    with pytest.raises(ConfigError):
        open_stun_socket("192.0.2.1", 0)  # not ours
