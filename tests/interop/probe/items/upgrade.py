"""How a connection becomes DERP: every request that does, and those that don't."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tailnet.derp.frames import encode_send_packet
from tailnet.derp.handshake import ClientInfo, encode_client_info
from tailnet.keys import NodePublic
from tests.interop.probe.answers import Json
from tests.interop.probe.cast import DERP_UPGRADE, PATIENCE, Cast, open_cast
from tests.interop.probe.http import Reply, exchange, head, read_reply
from tests.interop.probe.scenario import Scenario, run_cases
from tests.interop.probe.websocket import websocket_headers
from tests.interop.probe.wire import Target

Headers = Iterable[tuple[str, str]]

FAST_START = (*DERP_UPGRADE, ("Derp-Fast-Start", "1"))


async def upgrade(
    target: Target,
    request: bytes,
    *,
    method: str = "GET",
    piece: int = 0,
    early: bool = False,
) -> Json:
    """Send ``request``, and go on as a DERP client if the relay does.

    Args:
        target: The relay.
        request: The request head.
        method: The method in it.
        piece: Write everything in pieces of so many bytes.
        early: Write ClientInfo and a packet along with the request. The
            relay's key is asked of it beforehand.
    """
    async with open_cast(target) as cast:
        peer = await cast.connect("A")
        request_and_more = request
        if early:
            peer.server = await server_key(cast)
            request_and_more += introduction(cast, peer.server)
        await send_in_pieces(peer.wire.send, request_and_more, piece)
        first = await peer.wire.receive_within(PATIENCE)
        if first is None:
            return "silence"
        answer: dict[str, Json] = {}
        if first.startswith(b"HTTP/"):
            reply = await read_reply(peer.wire, method=method, first=first)
            if isinstance(reply, str):
                return reply
            answer |= reply.answer(target)
            if reply.status != 101:
                is_closed = await peer.wire.closes_within(0.7)
                return answer | {"then": "closed" if is_closed else "open"}
            first = reply.rest
        elif not first:
            return "closed without an answer"
        else:
            answer["status"] = "no response, frames at once"
        peer.receive_data(first)
        events = [await peer.next_event()]
        if peer.server is not None:
            if not early:
                more = introduction(cast, peer.server)
                await send_in_pieces(peer.wire.send, more, piece)
            events += [await peer.next_event(), await peer.next_event()]
        return answer | {"then": events}


async def send_in_pieces(send: object, data: bytes, piece: int) -> None:
    assert callable(send)
    for start in range(0, len(data), piece or len(data)):
        await send(data[start : start + (piece or len(data))])


def introduction(cast: Cast, server: NodePublic) -> bytes:
    """ClientInfo of A, and a packet of A to itself."""
    info = ClientInfo(can_ack_pings=True)
    own = cast.key("A")
    return encode_client_info(own, server, info) + encode_send_packet(
        own.public(), b"to myself"
    )


async def server_key(cast: Cast) -> NodePublic:
    """The relay's key, from a connection of its own."""
    other = await cast.upgrade("other")
    await cast.leave(other)
    assert other.server is not None
    return other.server


def with_headers(target: Target, headers: Headers, **options: str) -> bytes:
    return head(target, headers=headers, **options)


async def ways(target: Target) -> dict[str, Json]:
    request = partial(with_headers, target)
    ask = partial(upgrade, target)
    websocket = websocket_headers(Sec_WebSocket_Protocol=None)
    no_length = request(DERP_UPGRADE, method="POST")
    cases = {
        "GET": partial(ask, request(DERP_UPGRADE)),
        "GET, request byte by byte": partial(ask, request(DERP_UPGRADE), piece=1),
        "GET, everything in one write": partial(ask, request(DERP_UPGRADE), early=True),
        "fast start": partial(ask, request(FAST_START)),
        "fast start, everything in one write": partial(
            ask, request(FAST_START), early=True
        ),
        "fast start, everything in pieces of 7": partial(
            ask, request(FAST_START), early=True, piece=7
        ),
        "Derp-Fast-Start: true": partial(
            ask, request((*DERP_UPGRADE, ("Derp-Fast-Start", "true")))
        ),
        "Derp-Fast-Start: 0": partial(
            ask, request((*DERP_UPGRADE, ("Derp-Fast-Start", "0")))
        ),
        "Ideal-Node": partial(ask, request((*DERP_UPGRADE, ("Ideal-Node", "900a")))),
        "POST with Content-Length: 0": partial(
            ask,
            request((*DERP_UPGRADE, ("Content-Length", "0")), method="POST"),
            method="POST",
        ),
        "POST without Content-Length": partial(ask, no_length, method="POST"),
        "lower-case header names": partial(
            ask, request((("upgrade", "DERP"), ("connection", "Upgrade")))
        ),
        "Upgrade: derp": partial(
            ask, request((("Upgrade", "derp"), ("Connection", "Upgrade")))
        ),
        "Upgrade: dErP": partial(
            ask, request((("Upgrade", "dErP"), ("Connection", "upgrade")))
        ),
        "no Connection header": partial(ask, request((("Upgrade", "DERP"),))),
        "Connection: close": partial(
            ask, request((("Upgrade", "DERP"), ("Connection", "close")))
        ),
        "Upgrade: websocket without a subprotocol": partial(ask, request(websocket)),
        "Upgrade: websocket and nothing else": partial(
            ask, request((("Upgrade", "websocket"), ("Connection", "Upgrade")))
        ),
        "Upgrade: WebSocket without a subprotocol": partial(
            ask, request((("Upgrade", "WebSocket"), ("Connection", "Upgrade")))
        ),
        "HTTP/1.0": partial(ask, request(DERP_UPGRADE, version="HTTP/1.0")),
        "with a query": partial(ask, request(DERP_UPGRADE, path="/derp?x=1")),
        "absolute URI": partial(
            ask, request(DERP_UPGRADE, path=f"http://{target.authority}/derp")
        ),
        "foreign Host": partial(ask, request(DERP_UPGRADE, host="relay.example.com")),
        "empty Host": partial(
            ask,
            head(target, headers=(("Host", ""), *DERP_UPGRADE), host=None),
        ),
    }
    for method in ("HEAD", "PUT", "OPTIONS", "DELETE", "PATCH", "BREW"):
        cases[method] = partial(
            ask, request(DERP_UPGRADE, method=method), method=method
        )
    return await run_cases(cases)


async def refused(target: Target) -> dict[str, Json]:
    request = partial(with_headers, target)
    ask = partial(upgrade, target)
    cases = {
        "no Upgrade": partial(ask, request(())),
        "no Upgrade, POST": partial(ask, request((), method="POST"), method="POST"),
        "no Upgrade, HEAD": partial(ask, request((), method="HEAD"), method="HEAD"),
        "Upgrade: h2c": partial(
            ask, request((("Upgrade", "h2c"), ("Connection", "Upgrade")))
        ),
        "Upgrade: DERP, websocket": partial(
            ask, request((("Upgrade", "DERP, websocket"), ("Connection", "Upgrade")))
        ),
        "Upgrade: h2c, then Upgrade: DERP": partial(
            ask, request((("Upgrade", "h2c"), *DERP_UPGRADE))
        ),
        "Upgrade: DERP, then Upgrade: h2c": partial(
            ask, request((*DERP_UPGRADE, ("Upgrade", "h2c")))
        ),
        "Upgrade: DERP/2": partial(
            ask, request((("Upgrade", "DERP/2"), ("Connection", "Upgrade")))
        ),
        "path /derp/": partial(ask, request(DERP_UPGRADE, path="/derp/")),
        "path /DERP": partial(ask, request(DERP_UPGRADE, path="/DERP")),
        "path //derp": partial(ask, request(DERP_UPGRADE, path="//derp")),
        "path /x/../derp": partial(ask, request(DERP_UPGRADE, path="/x/../derp")),
        "path /d%65rp": partial(ask, request(DERP_UPGRADE, path="/d%65rp")),
        "path /": partial(ask, request(DERP_UPGRADE, path="/")),
        "path /derp/probe": partial(ask, request(DERP_UPGRADE, path="/derp/probe")),
        "path without /": partial(ask, request(DERP_UPGRADE, path="derp")),
        "no Host": partial(ask, head(target, headers=DERP_UPGRADE, host=None)),
        "two Hosts": partial(ask, request((("Host", "other"), *DERP_UPGRADE))),
        "HTTP/1.0 without Host": partial(
            ask, head(target, headers=DERP_UPGRADE, host=None, version="HTTP/1.0")
        ),
        "HTTP/2.0": partial(ask, request(DERP_UPGRADE, version="HTTP/2.0")),
        "HTTP/1.2": partial(ask, request(DERP_UPGRADE, version="HTTP/1.2")),
        "HTTP/3.7": partial(ask, request(DERP_UPGRADE, version="HTTP/3.7")),
        "h2 preface": partial(exchange, target, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "no HTTP": partial(exchange, target, b"hello relay\r\n\r\n"),
        "bytes of a TLS hello": partial(
            exchange, target, bytes.fromhex("160301000a0100000603030a0d0a0d0a0d0a")
        ),
        "header without colon": partial(
            exchange, target, request((("X", "y"),))[:-2] + b"nonsense\r\n\r\n"
        ),
        "header name with a space": partial(exchange, target, request((("X y", "z"),))),
        "NUL in a header value": partial(
            exchange, target, request((("X", "a\0b"), *DERP_UPGRADE))
        ),
        "folded header": partial(
            exchange, target, request((("X", "a\r\n b"),), path="/derp/probe")
        ),
        "bare line feeds": partial(
            upgrade, target, request(DERP_UPGRADE).replace(b"\r\n", b"\n")
        ),
        "bad Content-Length": partial(
            exchange, target, request((("Content-Length", "x"), *DERP_UPGRADE))
        ),
        "unknown Transfer-Encoding": partial(
            exchange, target, request((("Transfer-Encoding", "x"), *DERP_UPGRADE))
        ),
    }
    return await run_cases(cases)


async def long_heads(target: Target) -> dict[str, Json]:
    async def padded(size: int) -> Json:
        plain = head(target, headers=(*DERP_UPGRADE, ("X", "")))
        pad = "x" * (size - len(plain))
        return await upgrade(target, head(target, headers=(*DERP_UPGRADE, ("X", pad))))

    async def many(count: int) -> Json:
        headers = (*DERP_UPGRADE, *((f"X-{n}", "y") for n in range(count)))
        return await upgrade(target, head(target, headers=headers))

    return await run_cases(
        {
            "4,000 bytes": partial(padded, 4000),
            "12,000 bytes": partial(padded, 12_000),
            "20,000 bytes": partial(padded, 20_000),
            "500,000 bytes": partial(padded, 500_000),
            "1,100,000 bytes": partial(padded, 1_100_000),
            "path of 8,000 bytes": partial(
                upgrade,
                target,
                head(target, headers=DERP_UPGRADE, path="/derp?" + "x" * 8000),
            ),
            "500 headers": partial(many, 500),
        }
    )


async def after_requests(target: Target) -> dict[str, Json]:
    """An upgrade on a connection that has served other requests."""

    async def after(request: bytes, *, at_once: bool) -> Json:
        async with open_cast(target) as cast:
            peer = await cast.connect()
            last = head(target, headers=DERP_UPGRADE)
            await peer.wire.send(request + last if at_once else request)
            reply = await read_reply(peer.wire)
            assert isinstance(reply, Reply), reply
            answer: list[Json] = [reply.status]
            if not at_once:
                await peer.wire.send(last)
            upgraded = await read_reply(peer.wire, first=reply.rest)
            if isinstance(upgraded, str):
                return [*answer, upgraded]
            peer.receive_data(upgraded.rest)
            return [*answer, upgraded.status, await peer.next_event()]

    probe = head(target, path="/derp/probe")
    refused_upgrade = head(target)
    return await run_cases(
        {
            "after a probe": partial(after, probe, at_once=False),
            "after a 426": partial(after, refused_upgrade, at_once=False),
            "pipelined behind a probe": partial(after, probe, at_once=True),
        }
    )


UPGRADE = Scenario("upgrade", ways)
UPGRADE_REFUSED = Scenario("upgrade refused", refused)
LONG_HEADS = Scenario("long heads", long_heads)
AFTER_REQUESTS = Scenario("upgrade later", after_requests)
