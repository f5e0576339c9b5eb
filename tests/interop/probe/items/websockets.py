"""DERP over WebSocket: the upgrade, how bytes are chopped, and bad messages."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from wsproto.events import CloseConnection

from tailnet.derp.frames import encode_ping, encode_send_packet
from tailnet.derp.handshake import ClientInfo, encode_client_info
from tests.interop.probe import websocket as ws
from tests.interop.probe.answers import Json, closed
from tests.interop.probe.cast import Cast, Peer, open_cast
from tests.interop.probe.http import Reply, head, read_reply
from tests.interop.probe.scenario import Scenario, run_cases
from tests.interop.probe.websocket import WebSocketWire, encode_message
from tests.interop.probe.wire import Target, Wire


async def handshakes(target: Target) -> dict[str, Json]:
    async def ask(
        headers: tuple[tuple[str, str], ...],
        *,
        method: str = "GET",
        version: str = "HTTP/1.1",
    ) -> Json:
        async with open_cast(target) as cast:
            peer = await cast.connect()
            await peer.wire.send(
                head(target, method=method, version=version, headers=headers)
            )
            reply = await read_reply(peer.wire, method=method)
            if isinstance(reply, str):
                return reply
            answer = reply.answer(target)
            shown = answer.get("headers")
            if isinstance(shown, dict) and "sec-websocket-accept" in shown:
                is_right = shown["sec-websocket-accept"] == ws.right_accept()
                shown["sec-websocket-accept"] = "right" if is_right else "wrong"
            if reply.status != 101:
                is_closed = await peer.wire.closes_within(0.7)
                return answer | {"then": "closed" if is_closed else "open"}
            if not isinstance(shown, dict) or "sec-websocket-accept" not in shown:
                # Not WebSocket, but DERP as it is.
                peer.receive_data(reply.rest)
                return answer | {"then": await peer.next_event()}
            wire = WebSocketWire(peer.wire, reply.rest)
            event = await wire.next_event()
            if isinstance(event, CloseConnection):
                return answer | {"then": f"close {int(event.code)} {event.reason}"}
            return answer | {"then": ws.describe(event)}

    headers = ws.websocket_headers
    cases: dict[str, Callable[[], Awaitable[Json]]] = {
        "as browsers do": partial(ask, headers(Origin="https://login.example.com")),
        "with permessage-deflate": partial(
            ask,
            headers(
                Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits"
            ),
        ),
        "with Derp-Fast-Start: 1": partial(ask, headers(Derp_Fast_Start="1")),
        "Upgrade: WebSocket": partial(ask, headers(Upgrade="WebSocket")),
        "Connection: keep-alive, upgrade": partial(
            ask, headers(Connection="keep-alive, upgrade")
        ),
        "subprotocols foo, derp": partial(
            ask, headers(Sec_WebSocket_Protocol="foo, derp")
        ),
        "subprotocol derp in a second header": partial(
            ask,
            (
                *headers(Sec_WebSocket_Protocol="foo"),
                ("Sec-WebSocket-Protocol", "derp"),
            ),
        ),
        "subprotocol xderp": partial(ask, headers(Sec_WebSocket_Protocol="xderp")),
        "subprotocol DERP": partial(ask, headers(Sec_WebSocket_Protocol="DERP")),
        "subprotocol foo": partial(ask, headers(Sec_WebSocket_Protocol="foo")),
        "Upgrade: DERP with subprotocol derp": partial(ask, headers(Upgrade="DERP")),
        "no Upgrade": partial(ask, headers(Upgrade=None)),
        "no Connection": partial(ask, headers(Connection=None)),
        "Connection: keep-alive": partial(ask, headers(Connection="keep-alive")),
        "no key": partial(ask, headers(Sec_WebSocket_Key=None)),
        "key of 15 bytes": partial(
            ask, headers(Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25j")
        ),
        "key that is no base64": partial(
            ask, headers(Sec_WebSocket_Key="!!!!!!!!!!!!!!!!!!!!!!==")
        ),
        "two keys": partial(ask, (*headers(), ("Sec-WebSocket-Key", ws.WEBSOCKET_KEY))),
        "no version": partial(ask, headers(Sec_WebSocket_Version=None)),
        "version 8": partial(ask, headers(Sec_WebSocket_Version="8")),
        "POST": partial(ask, headers(), method="POST"),
        "HEAD": partial(ask, headers(), method="HEAD"),
        "HTTP/1.0": partial(ask, headers(), version="HTTP/1.0"),
    }
    return await run_cases(cases)


async def streams(target: Target) -> dict[str, Json]:
    """The byte stream inside the messages."""

    async def chopped(chop: Callable[[bytes], bytes]) -> Json:
        """Write ClientInfo, a packet to ourselves and a Ping, made to messages."""
        async with open_cast(target) as cast:
            peer = await cast.upgrade(way="websocket")
            await _below(peer).send(chop(_hello(peer)))
            return [await peer.next_event() for _ in range(2)]

    async def pipelined() -> Json:
        async with open_cast(target) as cast:
            other = await cast.upgrade("other")
            peer = await cast.connect()
            peer.server = other.server
            request = head(target, headers=ws.websocket_headers())
            await peer.wire.send(request + encode_message(_hello(peer)))
            reply = await read_reply(peer.wire)
            assert isinstance(reply, Reply), reply
            peer.wire = WebSocketWire(peer.wire, reply.rest)
            return [reply.status, *[await peer.next_event() for _ in range(3)]]

    async def largest() -> Json:
        async with open_cast(target) as cast:
            sender = await cast.join("A")
            peer = await cast.join("B", way="websocket")
            await sender.send_packet(peer, bytes(65536))
            event = await peer.next_event()
            assert isinstance(peer.wire, WebSocketWire)
            is_small = peer.wire.largest_message <= 32768
            return [event, f"no message is over 32768 bytes: {is_small}"]

    async def big(size: int) -> Json:
        """A packet to ourselves that makes one message of ``size`` bytes."""
        async with open_cast(target) as cast:
            peer = await cast.join(way="websocket")
            await peer.send_packet(peer, bytes(size - 37))
            return await peer.next_event()

    def bytewise(data: bytes) -> bytes:
        return b"".join(encode_message(data[i : i + 1]) for i in range(len(data)))

    def fragmented(data: bytes) -> bytes:
        middle = len(data) // 2
        return (
            encode_message(data[:9], final=False)
            + encode_message(data[9:middle], ws.CONTINUATION, final=False)
            + encode_message(b"ping", ws.PING)
            + encode_message(data[middle:], ws.CONTINUATION)
        )

    def with_empty(data: bytes) -> bytes:
        return b"".join(
            encode_message(part) for part in (b"", data[:50], b"", b"", data[50:])
        )

    return await run_cases(
        {
            "all in one message": partial(chopped, encode_message),
            "a byte a message": partial(chopped, bytewise),
            "fragmented message": partial(chopped, fragmented),
            "empty messages between": partial(chopped, with_empty),
            "pipelined with the request": pipelined,
            "size of messages with a packet of 65,536 bytes": largest,
            "message of 32,768 bytes": partial(big, 32768),
            "message of 32,769 bytes": partial(big, 32769),
            "message of 65,573 bytes": partial(big, 65573),
        }
    )


async def messages(target: Target) -> dict[str, Json]:
    """What follows a message that is no piece of the byte stream."""

    async def after(data: bytes, *, joined: bool = True) -> Json:
        async with open_cast(target) as cast:
            peer = await _join(cast, joined=joined)
            wire = peer.wire
            assert isinstance(wire, WebSocketWire)
            start = trio.current_time()
            await wire.below.send(data)
            await wire.below.send(encode_message(encode_ping(b"still on")))
            found: list[Json] = []
            while len(found) < 5:
                with trio.move_on_after(15) as waiting:
                    event = await wire.next_event()
                if waiting.cancelled_caught:
                    found.append("silence")
                    break
                found.append(ws.describe(event))
                if event is None:
                    found[-1] = closed(trio.current_time() - start)
                    break
                if found[-1] == "binary message of 13 bytes":
                    found[-1] = "Pong of DERP"
                    break
            return found

    return await run_cases(
        {
            "ping": partial(after, encode_message(b"hello", ws.PING)),
            "empty ping": partial(after, encode_message(b"", ws.PING)),
            "pong nobody asked for": partial(after, encode_message(b"x", ws.PONG)),
            "text": partial(after, encode_message(b"hello", ws.TEXT)),
            "text before ClientInfo": partial(
                after, encode_message(b"hello", ws.TEXT), joined=False
            ),
            "close 1000": partial(
                after, encode_message(struct.pack("!H", 1000), ws.CLOSE)
            ),
            "close 1001": partial(
                after, encode_message(struct.pack("!H", 1001) + b"bye", ws.CLOSE)
            ),
            "close without a code": partial(after, encode_message(b"", ws.CLOSE)),
            "close 1005": partial(
                after, encode_message(struct.pack("!H", 1005), ws.CLOSE)
            ),
            "close of one byte": partial(after, encode_message(b"x", ws.CLOSE)),
            "not masked": partial(after, encode_message(b"hello", masked=False)),
            "reserved bit": partial(after, encode_message(b"hello", reserved=4)),
            "unknown opcode": partial(after, encode_message(b"hello", 3)),
            "ping of 126 bytes": partial(after, encode_message(bytes(126), ws.PING)),
            "ping in fragments": partial(
                after, encode_message(b"x", ws.PING, final=False)
            ),
            "continuation of nothing": partial(
                after, encode_message(b"x", ws.CONTINUATION)
            ),
            "message inside a message": partial(
                after, encode_message(b"", final=False) + encode_message(b"")
            ),
            "a DERP error": partial(
                after, encode_message(bytes.fromhex("1200000001ff"))
            ),
        }
    )


async def _join(cast: Cast, *, joined: bool) -> Peer:
    if joined:
        return await cast.join(way="websocket")
    return await cast.upgrade(way="websocket")


def _below(peer: Peer) -> Wire:
    assert isinstance(peer.wire, WebSocketWire)
    return peer.wire.below


def _hello(peer: Peer) -> bytes:
    assert peer.server is not None
    info = ClientInfo(can_ack_pings=True)
    return encode_client_info(peer.private, peer.server, info) + encode_send_packet(
        peer.public, b"to myself"
    )


WEBSOCKET = Scenario("websocket upgrade", handshakes)
WEBSOCKET_STREAM = Scenario("websocket stream", streams)
WEBSOCKET_MESSAGES = Scenario("websocket messages", messages)
