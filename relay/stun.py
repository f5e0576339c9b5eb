"""The STUN responder: tells clients how the internet sees them.

One UDP socket, one task (tailscale ``net/stunserver/stunserver.go``). It
answers Tailscale's binding requests as derper does, and, which derper does
not, ordinary ones of RFC 8489 as well. Everything else is silence, and
counted.

API: :func:`open_stun_socket`, then :func:`serve_stun` in a nursery.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from tailnet.errors import (
    ConfigError,
    RemoteProtocolError,
    UnknownAttributesError,
)
from tailnet.stun.messages import (
    decode_binding_request,
    encode_binding_response,
    encode_unknown_attributes,
)

__all__ = ("StunStatistics", "open_stun_socket", "serve_stun")

log = structlog.get_logger("relay.stun")

# A binding request is far shorter; what is longer fails by being cut off.
MAX_DATAGRAM_LEN: Final = 2048

# Datagrams to answer before others have their turn.
BATCH: Final = 64

# stunserver.go sleeps as long when reading fails.
READ_ERROR_PAUSE: Final = 1.0

# Room for a burst; the kernel may give less, and it is fine.
RECEIVE_BUFFER_LEN: Final = 1 << 20


@dataclass(slots=True)
class StunStatistics:
    """Counters, by the labels of derper's metrics.

    Attributes:
        success: Requests that were answered.
        read_error: Failures to read from the socket.
        not_stun: Datagrams that derper would not answer either, for whatever
            reason.
        write_error: Answers that could not be sent.
        ipv4: Good requests by IPv4.
        ipv6: Good requests by IPv6.
    """

    success: int = 0
    read_error: int = 0
    not_stun: int = 0
    write_error: int = 0
    ipv4: int = 0
    ipv6: int = 0


def open_stun_socket(
    host: str, port: int, *, advice: str = "-stun-port, or -stun=false"
) -> socket.socket:
    """Open the socket to answer on.

    Args:
        host: An IP address, or empty for all of both families.
        port: 0 for any.
        advice: The setting for another one, for the message.

    Raises:
        ConfigError: The address is not ours, in use, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host or not host else socket.AF_INET
    if not host and not socket.has_dualstack_ipv6():
        family = socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(host))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_LEN)
            sock.bind((host, port))
        except BaseException:
            sock.close()
            raise
    except (OSError, OverflowError) as exc:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigError(
            f"cannot serve STUN on UDP {where}: {reason}; choose another port with "
            f"{advice}"
        ) from exc
    sock.setblocking(False)
    return sock


async def serve_stun(
    sock: socket.socket,
    statistics: StunStatistics,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled.

    Args:
        sock: From :func:`open_stun_socket`; closed when this ends.
        statistics: Counted here.
        task_status: Told at once; the socket has been open all along.
    """
    with sock:
        task_status.started()
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                for _ in range(BATCH):
                    _answer(sock, *sock.recvfrom(MAX_DATAGRAM_LEN), statistics)
            except (BlockingIOError, InterruptedError):
                pass  # all are answered
            except OSError as exc:
                statistics.read_error += 1
                log.warning("cannot read STUN requests", error=exc.strerror)
                await trio.sleep(READ_ERROR_PAUSE)


def _answer(
    sock: socket.socket,
    datagram: bytes,
    source: tuple[str, int] | tuple[str, int, int, int],
    statistics: StunStatistics,
) -> None:
    """Answer one datagram, if it asks for it; never raises."""
    try:
        request = decode_binding_request(datagram)
    except UnknownAttributesError as exc:
        statistics.not_stun += 1
        _send(sock, encode_unknown_attributes(exc.tx_id, exc.types), source)
        return
    except RemoteProtocolError:
        statistics.not_stun += 1
        return
    ip = ipaddress.ip_address(source[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.version == 4:
        statistics.ipv4 += 1
    else:
        statistics.ipv6 += 1
    answer = encode_binding_response(request.tx_id, ip, source[1])
    if _send(sock, answer, source):
        statistics.success += 1
    else:
        statistics.write_error += 1


def _send(
    sock: socket.socket,
    answer: bytes,
    target: tuple[str, int] | tuple[str, int, int, int],
) -> bool:
    try:
        sock.sendto(answer, target)
    except OSError:
        # Also when the send buffer is full: whoever asks asks again, and
        # nobody should have to wait for this one.
        return False
    return True
