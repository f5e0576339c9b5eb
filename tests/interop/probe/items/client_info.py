"""The DERP handshake: every ClientInfo that is taken, and those that are not."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from tailnet.derp.frames import FRAME_HEADER, FrameType, encode_frame
from tailnet.keys import NodePrivate, NodePublic
from tests.interop.probe.answers import Json, closed
from tests.interop.probe.cast import CLOSED, DERP_UPGRADE, Cast, Way, open_cast
from tests.interop.probe.http import head
from tests.interop.probe.scenario import Scenario, run_cases
from tests.interop.probe.wire import Target, open_wire

_MAKE = Callable[[Cast, NodePublic], bytes]


async def after(
    target: Target, make: _MAKE, *, way: Way = "upgrade", within: float = 25.0
) -> Json:
    """Connect, send what ``make`` returns for the relay's key, and wait."""
    async with open_cast(target) as cast:
        peer = await cast.upgrade(way=way)
        assert peer.server is not None
        start = trio.current_time()
        await peer.send(make(cast, peer.server))
        event = await peer.next_event(within)
        if event == CLOSED:
            return closed(trio.current_time() - start)
        return event


def body(cast: Cast, server: NodePublic, text: bytes) -> bytes:
    """A frame's body: key, nonce and box around ``text``."""
    private = cast.key("A")
    return bytes(private.public()) + private.seal_to(server, text)


def sealed(text: bytes) -> _MAKE:
    def make(cast: Cast, server: NodePublic) -> bytes:
        return encode_frame(FrameType.CLIENT_INFO, body(cast, server, text))

    return make


def raw(frame: bytes) -> _MAKE:
    return lambda cast, server: frame


def padded(size: int) -> _MAKE:
    """A ClientInfo that is right, with a body of ``size`` bytes."""
    text = b'{"version":2,"CanAckPings":true}'
    return sealed(text + b" " * (size - 32 - 24 - 16 - len(text)))


async def texts(target: Target) -> dict[str, Json]:
    """What stands in the box."""
    key = "0123456789abcdef" * 4
    deep = b'{"x":' * 9_000 + b"1" + b"}" * 9_000
    too_deep = b'{"x":' * 11_000 + b"1" + b"}" * 11_000
    cases = {
        "as Go writes it": b'{"version":2,"CanAckPings":true}',
        "as tailscale-rs writes it": b'{"can_ack_pings":false,"is_prober":false,'
        b'"mesh_key":"none","version":2}',
        "{}": b"{}",
        "null": b"null",
        "nothing": b"",
        "{": b"{",
        "[]": b"[]",
        '""': b'""',
        "1": b"1",
        "true": b"true",
        "no JSON": b"hello",
        "white space around": b' \r\n\t{"version" : 2 } \n',
        "rest behind": b"{} x",
        "two objects": b"{}{}",
        "comma at the end": b'{"version":2,}',
        "single quotes": b"{'version':2}",
        "byte order mark": b"\xef\xbb\xbf{}",
        "NUL behind": b"{}\0",
        "not UTF-8 in an unknown field": b'{"x":"\xff"}',
        "not UTF-8 in AppName": b'{"AppName":"\xff"}',
        "lone surrogate in AppName": b'{"AppName":"\\ud800"}',
        "control character in a string": b'{"AppName":"a\nb"}',
        "bad escape": b'{"AppName":"\\x41"}',
        "nested 9,000 deep": deep,
        "nested 11,000 deep": too_deep,
        "version 0": b'{"version":0}',
        "version 1": b'{"version":1}',
        "version 99": b'{"version":99}',
        "version -1": b'{"version":-1}',
        "version 2.0": b'{"version":2.0}',
        "version 2.5": b'{"version":2.5}',
        "version 2e0": b'{"version":2e0}',
        "version 02": b'{"version":02}',
        'version "2"': b'{"version":"2"}',
        "version null": b'{"version":null}',
        "version true": b'{"version":true}',
        "version of 64 bits": b'{"version":9223372036854775807}',
        "version of more than 64 bits": b'{"version":9223372036854775808}',
        "Version in upper case": b'{"VERSION":"x"}',
        "version twice": b'{"version":"x","version":2}',
        "CanAckPings 1": b'{"CanAckPings":1}',
        'CanAckPings "true"': b'{"CanAckPings":"true"}',
        "CanAckPings null": b'{"CanAckPings":null}',
        "canackpings of a wrong type": b'{"canackpings":7}',
        "IsProber 1": b'{"IsProber":1}',
        "IsProber true": b'{"IsProber":true}',
        "AppName": b'{"AppName":"x"}',
        "AppName 1": b'{"AppName":1}',
        "AppName of 10,000 bytes": json.dumps({"AppName": "x" * 10_000}).encode(),
        "an unknown field": b'{"new":{"a":[1,2,{}]}}',
        "meshKey null": b'{"meshKey":null}',
        'meshKey ""': b'{"meshKey":""}',
        'meshKey "none"': b'{"meshKey":"none"}',
        "meshKey 1": b'{"meshKey":1}',
        "meshKey of 63 digits": json.dumps({"meshKey": key[:-1]}).encode(),
        "meshKey of 65 digits": json.dumps({"meshKey": key + "0"}).encode(),
        "meshKey that is no hex": json.dumps({"meshKey": "g" * 64}).encode(),
        "meshKey with a space": json.dumps({"meshKey": " " + key}).encode(),
        "meshKey nobody has": json.dumps({"meshKey": key}).encode(),
        "meshKey of zeros": json.dumps({"meshKey": "0" * 64}).encode(),
        "meshKey in upper case": json.dumps({"meshKey": key.upper()}).encode(),
        "MESHKEY, wrong": b'{"MESHKEY":"x"}',
        "MeshKey, right": json.dumps({"MeshKey": key}).encode(),
        "mesh_key, wrong": b'{"mesh_key":"x"}',
        "me\u017fhKey, wrong": '{"me\u017fhKey":"x"}'.encode(),
    }
    return await run_cases(
        {name: partial(after, target, sealed(text)) for name, text in cases.items()}
    )


async def frames(target: Target) -> dict[str, Json]:
    """The frame around the box."""
    right = b'{"version":2,"CanAckPings":true}'

    def header(size: int, frame_type: int = FrameType.CLIENT_INFO) -> _MAKE:
        return raw(FRAME_HEADER.pack(frame_type, size))

    def of_type(frame_type: int) -> _MAKE:
        return lambda cast, server: encode_frame(frame_type, body(cast, server, right))

    def for_another(cast: Cast, server: NodePublic) -> bytes:
        return sealed(right)(cast, NodePrivate.generate().public())

    def by_another(cast: Cast, server: NodePublic) -> bytes:
        whole = body(cast, server, right)
        stranger = bytes(cast.key("B").public())
        return encode_frame(FrameType.CLIENT_INFO, stranger + whole[32:])

    def flipped(cast: Cast, server: NodePublic) -> bytes:
        whole = bytearray(body(cast, server, right))
        whole[-1] ^= 1
        return encode_frame(FrameType.CLIENT_INFO, bytes(whole))

    def with_key(key: bytes) -> _MAKE:
        return raw(encode_frame(FrameType.CLIENT_INFO, key + os.urandom(72)))

    def twice(cast: Cast, server: NodePublic) -> bytes:
        return sealed(right)(cast, server) + sealed(b"no JSON")(cast, server)

    return await run_cases(
        {
            "right": partial(after, target, sealed(right)),
            "right, by fast start": partial(
                after, target, sealed(right), way="fast start"
            ),
            "right, by websocket": partial(
                after, target, sealed(right), way="websocket"
            ),
            "a second ClientInfo": partial(after, target, twice),
            "body of 0 bytes": partial(after, target, header(0)),
            "body of 55 bytes": partial(
                after, target, raw(encode_frame(FrameType.CLIENT_INFO, bytes(55)))
            ),
            "body of 56 bytes": partial(
                after, target, raw(encode_frame(FrameType.CLIENT_INFO, bytes(56)))
            ),
            "body of 71 bytes": partial(
                after, target, raw(encode_frame(FrameType.CLIENT_INFO, bytes(71)))
            ),
            "body of 262,144 bytes": partial(after, target, padded(262_144)),
            "body of 262,145 bytes": partial(after, target, padded(262_145)),
            "header of 262,145 bytes, no body": partial(after, target, header(262_145)),
            "header of 4 GiB, no body": partial(after, target, header((1 << 32) - 1)),
            "header of another type, no body": partial(
                after, target, header(100, FrameType.SEND_PACKET)
            ),
            "type Ping": partial(
                after, target, raw(encode_frame(FrameType.PING, b"12345678"))
            ),
            "type SendPacket": partial(after, target, of_type(FrameType.SEND_PACKET)),
            "type 0": partial(after, target, of_type(0)),
            "type 0x99": partial(after, target, of_type(0x99)),
            "type ServerInfo": partial(after, target, of_type(FrameType.SERVER_INFO)),
            "box of random bytes": partial(
                after, target, with_key(bytes(NodePrivate.generate().public()))
            ),
            "box for another relay": partial(after, target, for_another),
            "box of another client": partial(after, target, by_another),
            "box with a changed bit": partial(after, target, flipped),
            "key of zeros": partial(after, target, with_key(bytes(32))),
            "key of low order": partial(after, target, with_key(b"\x01" + bytes(31))),
            "HTTP again": partial(after, target, raw(head(target))),
        }
    )


async def silence(target: Target) -> dict[str, Json]:
    """How long a relay waits for the next piece."""

    async def quiet(first: bytes) -> Json:
        async with open_wire(target) as wire:
            start = trio.current_time()
            await wire.send(first)
            if await wire.closes_within(60):
                return closed(trio.current_time() - start)
            return "open"

    async def after_server_key(make: _MAKE, way: Way = "upgrade") -> Json:
        return await after(target, make, way=way, within=60)

    async def dripping() -> Json:
        """ClientInfo, a byte a second."""
        async with open_cast(target) as cast:
            peer = await cast.upgrade()
            assert peer.server is not None
            data = sealed(b"{}")(cast, peer.server)
            start = trio.current_time()
            with trio.move_on_after(60):
                async with trio.open_nursery() as nursery:

                    async def drip() -> None:
                        for position in range(len(data)):
                            await peer.send(data[position : position + 1])
                            await trio.sleep(1)

                    nursery.start_soon(drip)
                    event = await peer.next_event(60)
                    nursery.cancel_scope.cancel()
                if event == CLOSED:
                    return closed(trio.current_time() - start)
                return event
            return "open"

    async def dripping_head() -> Json:
        """A request, a byte every two seconds."""
        async with open_wire(target) as wire:
            data = head(target, headers=(*DERP_UPGRADE, ("X", "y" * 100)))
            start = trio.current_time()
            with trio.move_on_after(60):
                async with trio.open_nursery() as nursery:

                    async def drip() -> None:
                        for position in range(len(data)):
                            await wire.send(data[position : position + 1])
                            await trio.sleep(2)

                    nursery.start_soon(drip)
                    while await wire.receive():
                        pass
                    nursery.cancel_scope.cancel()
                return closed(trio.current_time() - start)
            return "open"

    def half(cast: Cast, server: NodePublic) -> bytes:
        return sealed(b"{}")(cast, server)[:60]

    cases: dict[str, Callable[[], Awaitable[Json]]] = {
        "no request": partial(quiet, b""),
        "half a request": partial(quiet, head(target)[:-2]),
        "a request byte by byte": dripping_head,
        "nothing after a probe": partial(quiet, head(target, path="/derp/probe")),
        "nothing after ServerKey": partial(after_server_key, raw(b"")),
        "nothing after ServerKey, fast start": partial(
            after_server_key, raw(b""), "fast start"
        ),
        "nothing after ServerKey, websocket": partial(
            after_server_key, raw(b""), "websocket"
        ),
        "half a frame header": partial(after_server_key, raw(b"\x02\x00")),
        "half a ClientInfo": partial(after_server_key, half),
        "a header of 262,144 bytes": partial(
            after_server_key, raw(FRAME_HEADER.pack(FrameType.CLIENT_INFO, 262_144))
        ),
        "a ClientInfo byte by byte": dripping,
    }
    return await run_cases(cases, at_once=len(cases))


CLIENT_INFO_TEXTS = Scenario("ClientInfo JSON", texts)
CLIENT_INFO_FRAMES = Scenario("ClientInfo frame", frames)
SILENCE = Scenario("silence", silence, slow=True)
