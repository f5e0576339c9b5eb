"""Listening sockets, the accept limit, and what happens without descriptors."""

from __future__ import annotations

import errno
import math
import socket
from functools import partial

import pytest
import trio
import trio.testing

from relay.front.listeners import (
    AcceptLimiter,
    TcpOptions,
    accept_forever,
    open_listener,
    peer_address,
)
from tailnet.errors import ConfigError


def test_accept_limiter_is_a_token_bucket() -> None:
    limiter = AcceptLimiter(rate=2.0, burst=3, now=100.0)
    assert [limiter.admit(100.0) for _ in range(4)] == [True, True, True, False]
    assert [limiter.admit(100.5) for _ in range(2)] == [True, False]
    assert [limiter.admit(200.0) for _ in range(4)] == [True, True, True, False]
    assert (limiter.accepted, limiter.rejected) == (7, 3)


def test_no_limit() -> None:
    limiter = AcceptLimiter(rate=math.inf, burst=0, now=0.0)
    assert all(limiter.admit(0.0) for _ in range(100))
    assert (limiter.accepted, limiter.rejected) == (100, 0)


def test_accepted_sockets_inherit_the_options() -> None:
    options = TcpOptions(keepalive_time=77.0, user_timeout=9.5)
    with (
        open_listener("127.0.0.1", 0, options) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as sock,
    ):
        tcp = socket.IPPROTO_TCP
        assert sock.getsockopt(tcp, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(tcp, socket.TCP_KEEPIDLE) == 77
        assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 9500


def test_keepalive_can_be_off() -> None:
    options = TcpOptions(keepalive_time=None, user_timeout=0)
    with open_listener("127.0.0.1", 0, options) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_all_addresses_means_both_families() -> None:
    with open_listener("", 0, TcpOptions()) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with (
                socket.create_connection((host, port)) as client,
                listener.accept()[0] as sock,
            ):
                assert peer_address(sock) == client.getsockname()[:2]


def test_address_in_use_is_one_line_for_the_operator() -> None:
    with open_listener("127.0.0.1", 0, TcpOptions()) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: .*in use; ") as e:
            open_listener("127.0.0.1", port, TcpOptions())
        assert "\n" not in str(e.value)


def test_peer_that_is_gone_has_no_address() -> None:
    sock = socket.socket()
    sock.close()
    assert peer_address(sock) is None


async def test_over_the_limit_is_closed_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    handled: list[socket.socket] = []

    async def handle(sock: socket.socket) -> None:
        handled.append(sock)
        await trio.sleep(0)

    limiter = AcceptLimiter(rate=1.0, burst=1, now=0.0)
    listener = open_listener("127.0.0.1", 0, TcpOptions())
    address = listener.getsockname()
    async with trio.open_nursery() as nursery:
        accept = partial(accept_forever, limiter=limiter)
        nursery.start_soon(accept, listener, handle, nursery)
        clients = [socket.create_connection(address) for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        assert len(handled) == 1
        assert [client.recv(1) for client in clients[1:]] == [b"", b""]
        nursery.cancel_scope.cancel()
    assert listener.fileno() == -1
    for sock in (*handled, *clients):
        sock.close()


class Exhausted(socket.socket):
    """A listener whose first accepts find no descriptor left."""

    failures = 2

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_without_descriptors_it_waits_and_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    handled = trio.Event()

    async def handle(sock: socket.socket) -> None:
        sock.close()
        handled.set()
        await trio.sleep(0)

    plain = open_listener("127.0.0.1", 0, TcpOptions())
    address = plain.getsockname()
    listener = Exhausted(fileno=plain.detach())
    listener.setblocking(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, listener, handle, nursery)
        with socket.create_connection(address), trio.fail_after(60):
            await handled.wait()
        assert trio.current_time() == pytest.approx(0.2)
        nursery.cancel_scope.cancel()
