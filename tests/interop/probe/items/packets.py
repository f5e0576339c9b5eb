"""Packets: who gets them, which sizes go, and what happens to the others."""

from __future__ import annotations

from functools import partial

import trio

from tailnet.derp.frames import (
    DISCO_MAGIC,
    FRAME_HEADER,
    MAX_PACKET_SIZE,
    FrameType,
    encode_frame,
    encode_send_packet,
)
from tailnet.keys import NodePrivate
from tests.interop.probe.answers import Json
from tests.interop.probe.cast import Way, open_cast
from tests.interop.probe.scenario import Scenario, run_cases
from tests.interop.probe.wire import Target

# Longer than any packet of these tests; the same in every run.
PATTERN = bytes(range(251)) * 300

_WAYS: tuple[Way, ...] = ("upgrade", "fast start", "websocket")


def disco(size: int = 100) -> bytes:
    """A packet that a relay takes for disco if it has 62 bytes or more."""
    return (DISCO_MAGIC + PATTERN)[:size]


async def delivered(target: Target) -> dict[str, Json]:
    async def to_self(size: int, way: Way = "upgrade") -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A", way=way)
            await a.send_packet(a, PATTERN[:size])
            return await a.next_event()

    async def to_peer(size: int, way: Way, way_of_peer: Way) -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A", way=way)
            b = await cast.join("B", way=way_of_peer)
            await a.send_packet(b, PATTERN[:size])
            return [await b.next_event(), *await a.flush()]

    async def too_long(data: bytes) -> Json:
        async with open_cast(target) as cast:
            a, b = await cast.join("A"), await cast.join("B")
            await a.send_frame(FrameType.SEND_PACKET, bytes(b.public) + data)
            return {"A": await a.next_event(), "B": await b.flush()}

    async def too_short(body: bytes) -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A")
            await a.send_frame(FrameType.SEND_PACKET, body)
            return await a.next_event()

    async def announced(size: int) -> Json:
        """Only the header of a SendPacket comes, and then a Ping."""
        async with open_cast(target) as cast:
            a = await cast.join("A")
            await a.send(FRAME_HEADER.pack(FrameType.SEND_PACKET, size))
            return await a.next_event(2.0)

    async def in_order(packets: list[bytes]) -> Json:
        """No more than derper's queue holds, so that nothing is dropped."""
        async with open_cast(target) as cast:
            a, b = await cast.join("A"), await cast.join("B")
            await a.send(*(encode_send_packet(b.public, packet) for packet in packets))
            return [await b.next_event() for _ in packets]

    async def in_pieces(piece: int) -> Json:
        async with open_cast(target) as cast:
            a, b = await cast.join("A"), await cast.join("B")
            data = b"".join(
                encode_send_packet(b.public, PATTERN[:size]) for size in (10, 0, 300)
            )
            for start in range(0, len(data), piece):
                await a.send(data[start : start + piece])
            return [await b.next_event() for _ in range(3)]

    async def from_several() -> Json:
        async with open_cast(target) as cast:
            senders = [await cast.join(name) for name in "ACD"]
            b = await cast.join("B")
            for sender in senders:
                await sender.send_packet(b, sender.name.encode())
            return sorted([await b.next_event() for _ in senders])

    async def early() -> Json:
        """A packet right behind ClientInfo, before ServerInfo has come."""
        async with open_cast(target) as cast:
            b = await cast.join("B")
            a = await cast.upgrade("A")
            await a.send_client_info()
            await a.send_packet(b, b"early")
            return await b.next_event()

    cases = {
        f"to oneself, {size:,} bytes": partial(to_self, size)
        for size in (0, 1, 1400, 65_535, MAX_PACKET_SIZE)
    }
    cases |= {
        f"to a peer, {size:,} bytes": partial(to_peer, size, "upgrade", "upgrade")
        for size in (0, 1, 1400, 2043, 2048, 4096, MAX_PACKET_SIZE)
    }
    cases |= {
        f"from {way} to {way_of_peer}, {size:,} bytes": partial(
            to_peer, size, way, way_of_peer
        )
        for way in _WAYS
        for way_of_peer in _WAYS
        for size in (5, 20_000)
        if (way, way_of_peer) != ("upgrade", "upgrade")
    }
    cases["from upgrade to websocket, 65,536 bytes"] = partial(
        to_peer, MAX_PACKET_SIZE, "upgrade", "websocket"
    )
    return await run_cases(
        {
            **cases,
            "65,537 bytes": partial(too_long, PATTERN[: MAX_PACKET_SIZE + 1]),
            "header of 65,569 bytes, no body": partial(announced, 32 + 65_537),
            "header of 65,568 bytes, no body": partial(announced, 32 + 65_536),
            "header of 4 GiB, no body": partial(announced, (1 << 32) - 1),
            "body of 0 bytes": partial(too_short, b""),
            "body of 31 bytes": partial(too_short, bytes(31)),
            "20 packets in one write": partial(
                in_order, [b"%d" % number for number in range(20)]
            ),
            "20 disco packets in one write": partial(
                in_order, [disco() + b"%d" % number for number in range(20)]
            ),
            "10 packets of 65,536 bytes in one write": partial(
                in_order, [PATTERN[n : n + MAX_PACKET_SIZE] for n in range(10)]
            ),
            "byte by byte": partial(in_pieces, 1),
            "in pieces of 37": partial(in_pieces, 37),
            "from three peers": from_several,
            "before ServerInfo": early,
        }
    )


async def unknown(target: Target) -> dict[str, Json]:
    """Packets for a key that no one has."""

    async def send(packet: bytes) -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A")
            await a.send_packet(cast.key("nobody").public(), packet)
            return await a.flush()

    async def to_key(key: bytes) -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A")
            await a.send_frame(FrameType.SEND_PACKET, key + disco())
            return await a.flush()

    async def limited() -> Json:
        """Several at once; again after a second; again when all is refilled."""
        async with open_cast(target) as cast:
            a = await cast.join("A")
            nobody = cast.key("nobody").public()
            one = encode_send_packet(nobody, disco())
            answer: list[Json] = []
            for count, pause in ((6, 0.0), (1, 1.5), (6, 6.0)):
                await trio.sleep(pause)
                await a.send(one * count)
                events = await a.flush()
                answer.append(f"{count} sent: {len(events)} {set(events)}")
            return answer

    async def limited_by_connection() -> Json:
        async with open_cast(target) as cast:
            nobody = cast.key("nobody").public()
            counts: list[Json] = []
            for name in ("A", "A", "B"):
                peer = await cast.join(name)
                await peer.send(encode_send_packet(nobody, disco()) * 6)
                counts.append(len(await peer.flush()))
            return counts

    async def of_several_keys() -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A")
            names = [f"nobody{number}" for number in range(6)]
            await a.send(
                *(
                    encode_send_packet(cast.key(name).public(), disco())
                    for name in names
                )
            )
            return sorted(await a.flush())

    async def to_server() -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A")
            assert a.server is not None
            await a.send_packet(a.server, disco())
            return await a.flush()

    async def once_there() -> Json:
        """To a peer that was here."""
        async with open_cast(target) as cast:
            a, b = await cast.join("A"), await cast.join("B")
            await cast.leave(b)
            await trio.sleep(0.5)
            await a.send_packet(b, disco())
            return await a.flush()

    magic_off = b"x" + disco()[1:]
    return await run_cases(
        {
            "disco": partial(send, disco()),
            "disco of 62 bytes": partial(send, disco(62)),
            "disco of 61 bytes": partial(send, disco(61)),
            "disco of 65,536 bytes": partial(send, disco(MAX_PACKET_SIZE)),
            "another magic": partial(send, magic_off),
            "other": partial(send, PATTERN[:100]),
            "nothing": partial(send, b""),
            "disco to the relay's key": to_server,
            "disco to a key of zeros": partial(to_key, bytes(32)),
            "disco to a peer that left": once_there,
            "answers are limited": limited,
            "limited by connection": limited_by_connection,
            "limited for all keys together": of_several_keys,
        }
    )


async def other_frames(target: Target) -> dict[str, Json]:
    """Every frame type that is no packet and no Ping."""

    async def then(data: bytes, way: Way = "upgrade") -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A", way=way)
            await a.send(data)
            return "alive" if await a.is_alive() else "closed"

    async def with_mesh_key(text: str, data: bytes) -> Json:
        async with open_cast(target) as cast:
            a = await cast.upgrade("A")
            assert a.server is not None
            box = a.private.seal_to(a.server, f'{{"meshKey":"{text}"}}'.encode())
            await a.send_frame(FrameType.CLIENT_INFO, bytes(a.public) + box)
            await a.next_event()
            await a.send(data)
            return "alive" if await a.is_alive() else "closed"

    known = {
        FrameType.SEND_PACKET,
        FrameType.NOTE_PREFERRED,
        FrameType.FORWARD_PACKET,
        FrameType.WATCH_CONNS,
        FrameType.CLOSE_PEER,
        FrameType.PING,
    }
    types = [*range(0x17), 0x20, 0x7F, 0x80, 0xFF]
    cases = {
        f"type {number:#04x} of {size} bytes": partial(
            then, encode_frame(number, bytes(size))
        )
        for number in types
        if number not in known
        for size in (0, 40)
    }
    big = FRAME_HEADER.pack(0x99, 1_000_000) + bytes(1_000_000)
    bigger = FRAME_HEADER.pack(0x99, 1_048_577) + bytes(1_048_577)
    biggest = FRAME_HEADER.pack(0x99, 8_000_000) + bytes(8_000_000)
    key = bytes(NodePrivate.generate().public())
    cases |= {
        "unknown type of 1,000,000 bytes": partial(then, big),
        "unknown type of 1,048,577 bytes": partial(then, bigger),
        "unknown type of 8,000,000 bytes": partial(then, biggest),
    }
    for size, value in ((0, b""), (1, b"\1"), (1, b"\0"), (1, b"\xff"), (2, b"\1\0")):
        cases[f"NotePreferred of {size} bytes, {value.hex() or 'nothing'}"] = partial(
            then, encode_frame(FrameType.NOTE_PREFERRED, value)
        )
    mesh = {
        "WatchConns": encode_frame(FrameType.WATCH_CONNS, b""),
        "WatchConns of 1 byte": encode_frame(FrameType.WATCH_CONNS, b"x"),
        "ClosePeer": encode_frame(FrameType.CLOSE_PEER, key),
        "ClosePeer of 31 bytes": encode_frame(FrameType.CLOSE_PEER, key[1:]),
        "ForwardPacket": encode_frame(FrameType.FORWARD_PACKET, key * 2 + b"x"),
        "ForwardPacket of 63 bytes": encode_frame(
            FrameType.FORWARD_PACKET, (key * 2)[1:]
        ),
    }
    for name, data in mesh.items():
        cases[f"{name} without a mesh key"] = partial(then, data)
        cases[f"{name} with a wrong mesh key"] = partial(with_mesh_key, "5" * 64, data)
        cases[f"{name} with a mesh key of zeros"] = partial(
            with_mesh_key, "0" * 64, data
        )
    return await run_cases(cases)


async def pings(target: Target) -> dict[str, Json]:
    async def ping(data: bytes) -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A")
            await a.send_frame(FrameType.PING, data)
            first = await a.next_event()
            return [first, "alive" if await a.is_alive() else "closed"]

    async def announced(size: int) -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A")
            await a.send(FRAME_HEADER.pack(FrameType.PING, size))
            return await a.next_event(2.0)

    async def flood() -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A")
            await a.send(encode_frame(FrameType.PING, b"abcdefgh") * 2000)
            events = await a.events()
            return [
                "at least one" if events else "none",
                *sorted(set(events)),
                "alive" if await a.is_alive() else "closed",
            ]

    async def one_by_one() -> Json:
        async with open_cast(target) as cast:
            a = await cast.join("A", way="websocket")
            answer: list[Json] = []
            for number in range(5):
                await a.send_frame(FrameType.PING, b"number %d" % number)
                answer.append(await a.next_event())
            return answer

    letters = bytes(ord("a") + n % 26 for n in range(1001))
    cases = {
        f"{size} bytes": partial(ping, letters[:size])
        for size in (0, 7, 8, 9, 16, 1000, 1001)
    }
    return await run_cases(
        {
            **cases,
            "bytes that are no text": partial(ping, bytes(range(248, 256))),
            "header of 7 bytes, no body": partial(announced, 7),
            "header of 1,001 bytes, no body": partial(announced, 1001),
            "header of 8 bytes, no body": partial(announced, 8),
            "a flood": flood,
            "one by one": one_by_one,
        }
    )


PACKETS = Scenario("packets", delivered)
UNKNOWN_PEERS = Scenario("unknown peers", unknown)
OTHER_FRAMES = Scenario("other frames", other_frames)
PINGS = Scenario("pings", pings)
