"""One connection: what TLS and websockets can do to it."""

from __future__ import annotations

import pytest
import trio

from relay.derp.switch import ConnectionClosed
from tailnet.derp.frames import PeerGone, PeerGoneReason, RecvPacket, encode_send_packet
from tests.doubles import TlsClient, WebsocketClient
from tests.relay.derp.conftest import OpenRig
from tests.relay.derp.switch_rig import Rig


async def closed(rig: Rig) -> ConnectionClosed:
    with trio.fail_after(1):
        events = await rig.switch.wait_events()
    [event] = [e for e in events if isinstance(e, ConnectionClosed)]
    return event


async def test_many_records_in_one_read(open_rig: OpenRig) -> None:
    async with open_rig(transport="tls") as rig:
        a, b = await rig.join("a"), await rig.join("b")
        frames = [encode_send_packet(b.key, bytes([i]) * i) for i in range(50)]
        a.send_raw(b"".join(a.codec.encode(frame) for frame in frames))
        await rig.settle()
        assert b.packets() == [bytes([i]) * i for i in range(50)]


async def test_records_byte_by_byte(open_rig: OpenRig) -> None:
    async with open_rig(transport="tls") as rig:
        a, b = await rig.join("a"), await rig.join("b")
        for byte in a.codec.encode(encode_send_packet(b.key, b"slow")):
            a.send_raw(bytes([byte]))
            await rig.settle()
        assert b.packets() == [b"slow"]


async def test_broken_record_ends_the_connection(open_rig: OpenRig) -> None:
    async with open_rig(transport="tls") as rig:
        a, b = await rig.join("a"), await rig.join("b")
        record = bytearray(a.codec.encode(encode_send_packet(b.key, b"x")))
        record[-1] ^= 1
        a.send_raw(bytes(record))
        await rig.settle()
        event = await closed(rig)
        assert (event.id, event.by_fault) == (a.id, True)
        assert event.reason.startswith("TLS: ")
        assert b.packets() == []


async def test_close_notify_ends_the_connection_after_what_came_before(
    open_rig: OpenRig,
) -> None:
    async with open_rig(transport="tls") as rig:
        a, b = await rig.join("a"), await rig.join("b")
        assert isinstance(a.codec, TlsClient)
        last = a.codec.encode(encode_send_packet(b.key, b"last"))
        a.send_raw(last + a.codec.close())
        await rig.settle()
        assert b.received() == [
            RecvPacket(a.key, b"last"),
            PeerGone(a.key, PeerGoneReason.DISCONNECTED),
        ]
        event = await closed(rig)
        assert (event.reason, event.by_fault) == ("the client closed TLS", False)


@pytest.mark.parametrize("transport", ["tls", "websocket", "tls websocket"])
async def test_relay_says_goodbye(open_rig: OpenRig, transport: str) -> None:
    async with open_rig(transport=transport) as rig:
        peer = await rig.join("peer")
        rig.switch.close(peer.id, "enough")
        assert peer.received() == []
        assert peer.codec.closed
        assert peer.hung_up


async def test_text_message_is_told_why_it_ends(open_rig: OpenRig) -> None:
    async with open_rig(transport="websocket") as rig:
        peer = await rig.join("peer")
        peer.send_raw(b"\x81\x82" + bytes(4) + b"hi")
        await rig.settle()
        assert peer.received() == []
        assert isinstance(peer.codec, WebsocketClient)
        assert peer.codec.stream.close_code == 1003
        assert (await closed(rig)).by_fault


async def test_ping_of_the_websocket_is_answered(open_rig: OpenRig) -> None:
    async with open_rig(transport="websocket") as rig:
        peer = await rig.join("peer")
        peer.send_raw(b"\x89\x82" + bytes(4) + b"hi")
        await rig.settle()
        assert peer.sock.recv(100) == b"\x8a\x02hi"


async def test_large_packet_is_cut_into_messages(open_rig: OpenRig) -> None:
    async with open_rig(transport="websocket") as rig:
        a, b = await rig.join("a"), await rig.join("b")
        packet = bytes(range(256)) * 256
        await a.send_all(encode_send_packet(b.key, packet))
        await rig.settle()
        wire = b""
        while len(wire) < 65_000:
            wire += b.sock.recv(1 << 20)
            await rig.settle()
        assert wire[:2] == b"\x82\x7e"
        assert int.from_bytes(wire[2:4], "big") == 32_000
        assert b.codec.decode(wire).endswith(packet)
