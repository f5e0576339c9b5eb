"""Listening sockets, and accepting from them.

A trio listener would do, but the switch needs bare sockets, and a storm of
connections is accepted in batches here: one wake-up for all that wait.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from tailnet.errors import ConfigError

__all__ = (
    "AcceptLimiter",
    "TcpOptions",
    "accept_forever",
    "open_listener",
    "peer_address",
)

_BACKLOG: Final = 4096  # Go: the system's limit, which is this on Linux
_ACCEPTS_PER_TURN: Final = 64

# Out of file descriptors or memory: others' connections may end and free
# some. trio.serve_listeners waits as long.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_EXHAUSTED_PAUSE: Final = 0.1

# TCP_USER_TIMEOUT of linux/tcp.h; the socket module has it there only.
_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)

log = structlog.get_logger("relay.front")


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """Options of accepted sockets (derper flags ``-tcp-*``).

    Attributes:
        keepalive_time: Seconds of silence before the kernel probes; None for
            no probes.
        user_timeout: Seconds for which sent data may stay unacknowledged
            before the kernel gives up; 0 for its default.
    """

    keepalive_time: float | None = 600.0
    user_timeout: float = 15.0


class AcceptLimiter:
    """A token bucket over accepted connections (``-accept-connection-*``).

    Args:
        rate: Connections per second; infinite for no limit.
        burst: How many may come at once.
        now: Seconds.
    """

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = self._burst
        self._at = now
        self.accepted = 0
        self.rejected = 0

    def admit(self, now: float) -> bool:
        """Whether one more connection may come in."""
        if not math.isinf(self._rate):
            self._tokens = min(
                self._burst, self._tokens + (now - self._at) * self._rate
            )
            self._at = now
            if self._tokens < 1:
                self.rejected += 1
                return False
            self._tokens -= 1
        self.accepted += 1
        return True


def open_listener(
    host: str, port: int, options: TcpOptions, *, setting: str = "-a"
) -> socket.socket:
    """Open a listening socket.

    Args:
        host: An IP address, or empty for all of both families.
        port: 0 for any.
        options: Accepted sockets inherit them from this one.
        setting: Where the address is from, for the message.

    Raises:
        ConfigError: The address is not ours, in use, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host or not host else socket.AF_INET
    if not host and not socket.has_dualstack_ipv6():
        family = socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        raise ConfigError(f"cannot listen: {exc.strerror}") from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(host))
        _set_tcp_options(sock, options)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise ConfigError(
            f"cannot listen on {where}: {exc.strerror}; choose another address "
            f"with {setting}, or end what listens there"
        ) from exc
    sock.setblocking(False)
    return sock


def _set_tcp_options(sock: socket.socket, options: TcpOptions) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options.keepalive_time is not None:
        seconds = max(1, round(options.keepalive_time))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
    if options.user_timeout > 0 and _USER_TIMEOUT is not None:
        milliseconds = max(1, round(options.user_timeout * 1000))
        sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, milliseconds)


def peer_address(sock: socket.socket) -> tuple[str, int] | None:
    """Address and port of the other end, IPv4 unmapped; None if it is gone."""
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return None
    return host.removeprefix("::ffff:") if "." in host else host, port


async def accept_forever(
    listener: socket.socket,
    handler: Callable[[socket.socket], Awaitable[None]],
    handler_nursery: trio.Nursery,
    *,
    limiter: AcceptLimiter | None = None,
) -> None:
    """Accept connections and start ``handler`` for each.

    Args:
        listener: Closed when this ends, however it ends.
        handler: Owns the socket; must not raise for what a client does.
        handler_nursery: Where handlers run, so that they outlive this.
        limiter: Those over it are closed at once, before any TLS.
    """
    with listener:
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(_ACCEPTS_PER_TURN):
                try:
                    sock, _ = listener.accept()
                except (BlockingIOError, InterruptedError):
                    break
                except OSError as exc:
                    if exc.errno in _EXHAUSTED:
                        log.error("cannot accept", error=exc.strerror)
                        await trio.sleep(_EXHAUSTED_PAUSE)
                    # Otherwise: a client that left while it waited in line.
                    break
                if limiter is not None and not limiter.admit(trio.current_time()):
                    sock.close()
                    continue
                sock.setblocking(False)
                handler_nursery.start_soon(handler, sock)
