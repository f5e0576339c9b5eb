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
from tailnet.derp.frames import RecvPacket
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


async def test_stopping_delivers_what_is_queued(tmp_path: Path) -> None:
    with trio.fail_after(30):
        a, b = NodePrivate.generate(), NodePrivate.generate()
        async with open_relay(settings(tmp_path)) as relay:
            nodes = [node(relay)]
            async with (
                open_derp_client(a, nodes) as sender,
                open_derp_client(b, nodes) as receiver,
            ):
                await sender.wait_connected()
                await receiver.wait_connected()
                for _ in range(200):
                    await sender.send(b.public(), bytes(1000))
                await sender.flush()
                got = 0
                async for event in receiver:
                    got += isinstance(event, RecvPacket)
                    if got == 200:
                        break
                relay.stop()
                assert relay.is_stopping
                await relay.wait_stopping()


async def test_wrong_settings_are_one_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = replace(settings(tmp_path), listen=ListenAddress("127.0.0.1", port))
        with pytest.raises(ConfigError, match="in use"):
            async with open_relay(wanted):
                pass
    broken = tmp_path / "relay.key"
    broken.write_text("no key", encoding="ascii")
    with pytest.raises(ConfigError):
        async with open_relay(settings(tmp_path)):
            pass


async def test_error_in_the_body_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
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
