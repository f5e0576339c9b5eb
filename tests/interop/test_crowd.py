"""5,000 idle clients come, and leave: descriptors and memory come back."""

from __future__ import annotations

import resource
import socket
import ssl
import time
from contextlib import ExitStack

import psutil
import pytest

from tailnet.derp.frame_buffer import FrameBuffer
from tailnet.derp.frames import FrameType
from tailnet.derp.handshake import (
    ClientInfo,
    decode_server_info,
    decode_server_key,
    encode_client_info,
)
from tailnet.derp.upgrade import ResponseReader, encode_upgrade_request
from tailnet.keys import NodePrivate
from tests.interop.relays import RelayProcess, open_relay_process

pytestmark = pytest.mark.interop

CLIENTS = 5_000
KIB = 1 << 10

# What an idle client may cost, and what may stay behind of a crowd: buffers
# of the allocator and Python's own free lists.
IDLE_CLIENT = 40 * KIB
LEFT_BEHIND = 30 * KIB * KIB


@pytest.fixture(autouse=True)
def enough_descriptors() -> None:
    wanted = CLIENTS + 500
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{wanted} file descriptors are needed, the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def come(relay: RelayProcess, key: NodePrivate, tls: ssl.SSLContext) -> socket.socket:
    """Connect and log in, by blocking calls."""
    target = relay.target
    sock: socket.socket = socket.create_connection((target.host, target.port), 10)
    # Go's default too. Without it each handshake waits 40 ms for an ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if target.tls:
        sock = tls.wrap_socket(sock)
    sock.sendall(encode_upgrade_request("relay.test"))
    reader = ResponseReader()
    head = None
    while head is None:
        head = reader.receive_data(sock.recv(4096))
    assert head.status == 101
    frames = FrameBuffer()
    frames.receive_data(head.rest)
    while (frame := frames.next_frame()) is None:
        frames.receive_data(sock.recv(4096))
    server = decode_server_key(frame)
    info = ClientInfo(can_ack_pings=True)
    sock.sendall(encode_client_info(key, server, info))
    while (frame := frames.next_frame()) is None:
        frames.receive_data(sock.recv(4096))
    assert frame.type == FrameType.SERVER_INFO
    assert decode_server_info(key, server, frame).version == 2
    return sock


def settled(process: psutil.Process, descriptors: int) -> int:
    """Wait for the descriptors to come back; returns the memory, in bytes."""
    deadline = time.monotonic() + 20
    while process.num_fds() > descriptors:
        assert time.monotonic() < deadline, f"{process.num_fds()} descriptors"
        time.sleep(0.05)
    return int(process.memory_info().rss)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_crowd_leaves_nothing_behind(tls: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    keys = [NodePrivate.generate() for _ in range(CLIENTS)]
    with open_relay_process("ours", tls=tls) as relay:
        process = psutil.Process(relay.pid)
        descriptors = process.num_fds()
        before = process.memory_info().rss
        with ExitStack() as crowd:
            for key in keys:
                crowd.enter_context(come(relay, key, context))
            assert process.num_fds() == descriptors + CLIENTS
            grown = process.memory_info().rss - before
            assert grown < CLIENTS * IDLE_CLIENT
        after = settled(process, descriptors)
        assert after - before < LEFT_BEHIND
        with come(relay, keys[0], context):
            assert process.num_fds() == descriptors + 1
