"""The relay as a whole, in this process, on loopback."""

from __future__ import annotations

import json
import socket
import ssl
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import trio
import trio.testing

from relay.app import Relay, open_relay
from relay.config import ListenAddress, Settings, load_settings
from relay.derp.pure_switch import PureSwitch
from relay.derp.session import Newcomer
from tailnet import NodePrivate, open_derp_client
from tailnet.derp.derpmap import DERPNode
from tailnet.derp.frame_buffer import FrameBuffer
from tailnet.derp.frames import FrameType, RecvPacket, encode_send_packet
from tailnet.derp.handshake import ClientInfo, encode_client_info
from tailnet.errors import ConfigError
from tailnet.stun.messages import decode_binding_response, encode_binding_request


def settings(folder: Path, *flags: str, tls: bool = False) -> Settings:
    """Settings for a relay on free ports of loopback."""
    more = ("-certmode", "manual", "-certdir", str(folder / "certs")) if tls else ()
    base = load_settings(
        [
            *("-a", "127.0.0.1:1", "-hostname", "127.0.0.1", "-http-port", "-1"),
            *("-c", str(folder / "relay.key"), "-stun=false", *more, *flags),
        ],
        {},
    )
    anywhere = ListenAddress("127.0.0.1", 0)
    return replace(base, listen=anywhere, http=anywhere if tls else None, stun=anywhere)


def node(relay: Relay, *, tls: bool = False) -> DERPNode:
    host, port = relay.addresses["derp"]
    return DERPNode(
        name="1a",
        region_id=1,
        host_name=host,
        derp_port=port,
        force_http=not tls,
        insecure_for_tests=tls,
    )


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_packets_pages_and_stun(tmp_path: Path, tls: bool) -> None:
    with trio.fail_after(30):
        async with open_relay(settings(tmp_path, tls=tls)) as relay:
            a, b = NodePrivate.generate(), NodePrivate.generate()
            async with (
                open_derp_client(a, [node(relay, tls=tls)]) as sender,
                open_derp_client(b, [node(relay, tls=tls)]) as receiver,
            ):
                connected = await sender.wait_connected()
                assert connected.fast_start == tls
                await receiver.wait_connected()
                await sender.send(b.public(), b"hello")
                async for event in receiver:
                    if isinstance(event, RecvPacket):
                        assert (event.src, event.packet) == (a.public(), b"hello")
                        break
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.settimeout(5)
                sock.bind(("127.0.0.1", 0))
                sock.sendto(encode_binding_request(b"t" * 12), relay.addresses["stun"])
                answer = await trio.to_thread.run_sync(sock.recv, 999)
                mapped = decode_binding_response(answer)
                assert (str(mapped.ip), mapped.port) == sock.getsockname()
            assert ("http" in relay.addresses) == tls


async def join(relay: Relay, key: NodePrivate) -> trio.SocketStream:
    """Connect a client that from then on reads only when the test says so."""
    sock = trio.socket.socket()
    # Little fits into the kernel: the rest waits in the relay.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(relay.addresses["derp"])
    stream = trio.SocketStream(sock)
    admitted = relay.derp.statistics.admitted
    await stream.send_all(
        b"GET /derp HTTP/1.1\r\nHost: a\r\nUpgrade: DERP\r\n\r\n"
        + encode_client_info(key, relay.derp.public_key, ClientInfo())
    )
    while relay.derp.statistics.admitted == admitted:
        await trio.sleep(0.001)
    return stream


async def test_stopping_delivers_what_is_queued(tmp_path: Path) -> None:
    packet, count = bytes(60_000), 200
    a, b = NodePrivate.generate(), NodePrivate.generate()
    got = 0

    async def read_late(relay: Relay, stream: trio.SocketStream) -> None:
        nonlocal got
        await relay.wait_stopping()
        frames = FrameBuffer()
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        frames.receive_data(head.partition(b"\r\n\r\n")[2])
        while data := await stream.receive_some(1 << 16):
            frames.receive_data(data)
            while (frame := frames.next_frame()) is not None:
                got += frame.type == FrameType.RECV_PACKET

    wanted = settings(tmp_path, "-queue-bytes", str(64 << 20))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, open_relay(wanted) as relay:
            sender, receiver = await join(relay, a), await join(relay, b)
            await sender.send_all(encode_send_packet(b.public(), packet) * count)
            while relay.switch.statistics().packets_received < count:
                await trio.sleep(0.001)
            # Else there would be nothing to deliver.
            assert relay.switch.statistics().queued_bytes > len(packet)
            nursery.start_soon(read_late, relay, receiver)
            relay.stop()
            assert relay.is_stopping
        await sender.aclose()
        await receiver.aclose()
    assert got == count


async def test_wrong_settings_are_one_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = replace(settings(tmp_path), listen=ListenAddress("127.0.0.1", port))
        with pytest.raises(ConfigError, match=r"in use.* with -a,"):
            async with open_relay(wanted):
                pass
        helper = replace(settings(tmp_path), http=ListenAddress("127.0.0.1", port))
        with pytest.raises(ConfigError, match=r"in use.* with -http-port,"):
            async with open_relay(helper):
                pass
    broken = tmp_path / "relay.key"
    broken.write_text("no key", encoding="ascii")
    with pytest.raises(ConfigError):
        async with open_relay(settings(tmp_path)):
            pass


async def test_error_in_the_body_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_relay(settings(tmp_path)):
            raise ZeroDivisionError


async def test_reloading_keeps_the_old_certificate_if_the_new_is_broken(
    tmp_path: Path,
) -> None:
    with trio.fail_after(30):
        async with open_relay(settings(tmp_path, tls=True)) as relay:
            address = relay.addresses["derp"]
            before = await trio.to_thread.run_sync(ssl.get_server_certificate, address)
            certificate = tmp_path / "certs" / "127.0.0.1.crt"
            certificate.write_text("broken", encoding="ascii")
            relay.reload()
            after = await trio.to_thread.run_sync(ssl.get_server_certificate, address)
            assert after == before
            certificate.unlink()
            (tmp_path / "certs" / "127.0.0.1.key").unlink()


async def test_admission_by_function(tmp_path: Path) -> None:
    friend, stranger = NodePrivate.generate(), NodePrivate.generate()

    async def admit(newcomer: Newcomer) -> str | None:
        await trio.lowlevel.checkpoint()
        return None if newcomer.key == friend.public() else "a stranger"

    with trio.fail_after(30):
        async with open_relay(settings(tmp_path), admission=[admit]) as relay:
            async with open_derp_client(friend, [node(relay)]) as client:
                await client.wait_connected()
            async with open_derp_client(stranger, [node(relay)]) as client:
                with trio.move_on_after(0.5) as scope:
                    await client.wait_connected()
                assert scope.cancelled_caught
            assert relay.derp.statistics.refused >= 1


class Controller(BaseHTTPRequestHandler):
    """An admission controller that refuses everybody."""

    asked: ClassVar[list[object]] = []

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.asked.append(json.loads(self.rfile.read(size)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"Allow":false}')

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


async def test_admission_by_url(tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Controller)
    thread = Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/verify"
    key = NodePrivate.generate()
    try:
        with trio.fail_after(30):
            wanted = settings(tmp_path, "-verify-client-url", url)
            async with open_relay(wanted) as relay:
                async with open_derp_client(key, [node(relay)]) as client:
                    with trio.move_on_after(1):
                        await client.wait_connected()
                assert relay.derp.statistics.admitted == 0
                assert relay.derp.statistics.refused >= 1
    finally:
        await trio.to_thread.run_sync(server.shutdown)
        thread.join()
        server.server_close()
    expected = {"NodePublic": str(key.public()), "Source": "127.0.0.1"}
    assert Controller.asked[0] == expected


async def test_draining_has_one_deadline(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half-open connections and full queues took twice the time together."""

    async def never(_switch: PureSwitch) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(PureSwitch, "wait_flushed", never)
    async with open_relay(settings(tmp_path, "-drain-timeout", "5s")) as relay:
        half_open = socket.create_connection(relay.addresses["derp"])
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
    half_open.close()
    assert trio.current_time() - started == 5
