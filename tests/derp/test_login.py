"""One attempt to connect: HTTP, websocket, fast start, DERP's handshake."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
import trio.testing

from tailnet.derp.connection import ServerConnection
from tailnet.derp.frames import NotePreferred, SendPacket
from tailnet.derp.handshake import ClientInfo, ServerInfo, encode_server_key
from tailnet.derp.login import Login, UpgradeRefusedError, Way, log_in
from tailnet.derp.upgrade import encode_upgrade_response
from tailnet.derp.websocket import (
    WebsocketStream,
    check_websocket_request,
    encode_websocket_response,
)
from tailnet.errors import ConnectError
from tailnet.keys import NodePublic
from tests.derp.make_certificates import make_certificate, make_meta_certificate
from tests.derp.memory_relay import (
    CLIENT_KEY,
    NODE,
    PEER,
    RELAY_KEY,
    MemoryRelay,
    RelayEnd,
)
from tests.derp.test_dial import CA, context_of, server_context, trusting

INFO = ClientInfo(can_ack_pings=True)
UPGRADE = encode_upgrade_response(RELAY_KEY.public())


@dataclass
class Attempt:
    """What has become of a login."""

    login: Login | None = None
    error: ConnectError | None = None


@asynccontextmanager
async def attempting(
    way: Way, *, info: ClientInfo = INFO, preferred: bool = True
) -> AsyncIterator[Attempt]:
    """A login in the background of a block, done at its end."""
    attempt = Attempt()

    async def run() -> None:
        try:
            attempt.login = await log_in(way, CLIENT_KEY, info, preferred=preferred)
        except ConnectError as exc:
            attempt.error = exc

    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield attempt


async def fail_with(
    answer: bytes, *, close: bool = True, way: Way | None = None
) -> ConnectError:
    """The error of a login whose request gets ``answer``."""
    relay = MemoryRelay()
    way = Way([NODE]) if way is None else way
    async with attempting(replace(way, connect=relay.connect)) as attempt:
        end = await relay.accept()
        await end.read_head()
        await end.stream.send_all(answer)
        if close:
            await end.stream.aclose()
    assert attempt.error is not None
    if not close:
        assert await end.stream.receive_some() == b"", "not closed by the client"
    return attempt.error


async def test_a_login_by_plain_http(autojump_clock: trio.testing.MockClock) -> None:
    relay = MemoryRelay()
    async with attempting(Way([NODE], connect=relay.connect)) as attempt:
        end = await relay.admit(ServerInfo(token_bucket_rate=7, token_bucket_burst=8))
    login = attempt.login
    assert login is not None
    assert login.server_key == RELAY_KEY.public()
    assert login.server_info == ServerInfo(token_bucket_rate=7, token_bucket_burst=8)
    assert (login.node, login.remote) == (NODE, "derp.test:3340")
    assert (login.fast_start, login.tls, login.channel.websocket) == (False, None, None)
    assert end.request == (
        b"GET /derp HTTP/1.1\r\n"
        b"Host: derp.test:3340\r\n"
        b"User-Agent: tailnet\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: DERP\r\n\r\n"
    )
    assert end.hello is not None
    assert (end.hello.key, end.hello.info) == (CLIENT_KEY.public(), INFO)
    assert await end.next_frame() == NotePreferred(True)


async def test_a_relay_that_is_not_home_is_told_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    info = replace(INFO, app_name="x", is_prober=True)
    way = Way([NODE], connect=relay.connect)
    async with attempting(way, info=info, preferred=False) as attempt:
        end = await relay.admit()
    assert attempt.login is not None
    assert end.hello is not None
    assert end.hello.info == info
    await attempt.login.channel.stream.send_eof()  # type: ignore[attr-defined]
    with pytest.raises(trio.EndOfChannel):
        await end.next_frame()


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        ({"derp_port": 80}, b"derp.test"),
        ({"derp_port": 0}, b"derp.test:443"),
        ({"host_name": "2001:db8::1"}, b"[2001:db8::1]:3340"),
        ({"host_name": "2001:db8::1", "derp_port": 80}, b"[2001:db8::1]"),
    ],
)
async def test_host_header(
    fields: dict[str, object], host: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    relay = MemoryRelay()
    node = replace(NODE, **fields)  # type: ignore[arg-type]
    async with attempting(Way([node], connect=relay.connect)):
        end = await relay.accept()
        assert b"\r\nHost: %b\r\n" % host in await end.read_head()
        await end.stream.aclose()


async def test_another_node_than_the_first_says_which_would_be_ideal(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    nodes = [replace(NODE, name="900x", stun_only=True), NODE]
    headers = [("Authorization", "Bearer 1")]
    way = Way(nodes, headers=headers, connect=relay.connect)
    async with attempting(way) as attempt:
        end = await relay.admit()
    assert attempt.login is not None
    assert attempt.login.node is NODE
    assert b"\r\nIdeal-Node: 900x\r\n" in end.request
    assert b"\r\nAuthorization: Bearer 1\r\n" in end.request


async def test_everything_may_come_byte_by_byte(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with attempting(Way([NODE], connect=relay.connect)) as attempt:
        end = await relay.accept()
        await end.read_head()
        for byte in UPGRADE + end.connection.data_to_send():
            await end.stream.send_all(bytes([byte]))
        await end.admit()
    assert attempt.login is not None


# -- refusals ---------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 426, 499])
async def test_a_4xx_calls_for_a_websocket(
    status: int, autojump_clock: trio.testing.MockClock
) -> None:
    answer = b"HTTP/1.1 %d Nope\r\nContent-Length: 6\r\n\r\nno way" % status
    error = await fail_with(answer, close=False)
    assert isinstance(error, UpgradeRefusedError)
    assert error.reason == (
        f"GET failed with status code {status} (a proxy could be disallowing the "
        "use of 'Upgrade: derp'): no way"
    )
    assert trio.current_time() == 0


@pytest.mark.parametrize("status", [200, 302, 399, 500, 503])
async def test_other_answers_are_mere_failures(
    status: int, autojump_clock: trio.testing.MockClock
) -> None:
    answer = b"HTTP/1.1 %d Hm\r\nContent-Length: 2\r\n\r\nok" % status
    error = await fail_with(answer)
    assert str(error) == f"GET failed: {status} Hm: ok"
    assert not isinstance(error, UpgradeRefusedError)


@pytest.mark.parametrize(
    ("framing", "body", "text", "seconds"),
    [
        (b"Transfer-Encoding: chunked", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", "abc", 0),
        (b"Content-Length: 10", b"cut", "cut", 1),  # the rest never comes
        (b"Content-Length: 9999", b"x" * 9999, "x" * 1024, 0),
        (b"X: y", b"no end", "no end", 1),
        (b"Transfer-Encoding: chunked", b"zz\r\n", "", 0),
        (b"Content-Length: 3", b"\xff\xfe!", "\ufffd\ufffd!", 0),
    ],
)
async def test_the_text_of_a_refusal(
    framing: bytes,
    body: bytes,
    text: str,
    seconds: float,
    autojump_clock: trio.testing.MockClock,
) -> None:
    answer = b"HTTP/1.1 400 Bad\r\n" + framing + b"\r\n\r\n" + body
    error = await fail_with(answer, close=False)
    assert isinstance(error, UpgradeRefusedError)
    assert error.reason.endswith(f"'Upgrade: derp'): {text}")
    assert trio.current_time() == seconds


async def test_http2_calls_for_a_websocket() -> None:
    relay = MemoryRelay()
    server, client = server_context(CA.issue_cert("derp.test")), trusting()
    server.set_alpn_protocols(["h2"])
    client.set_alpn_protocols(["h2", "http/1.1"])
    way = Way([replace(NODE, force_http=False)], tls_context=client)
    async with attempting(replace(way, connect=relay.connect)) as attempt:
        end = await relay.accept()
        tls = trio.SSLStream(end.stream, server, server_side=True)
        with suppress(trio.BrokenResourceError):
            # The client is through with the handshake first, and leaves.
            await tls.do_handshake()
    assert isinstance(attempt.error, UpgradeRefusedError)
    assert attempt.error.reason == (
        "The server wanted us to use HTTP/2, but DERP requires Upgrade which needs "
        "HTTP/1.1"
    )


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "closed without an answer"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 101 x\r\nA: " + b"a" * 20000, "more than 16384 bytes"),
        (UPGRADE, "closed the connection before it admitted us"),
        (UPGRADE + b"\x01\x00\x00\x00\x28" + b"nonsense" + bytes(32), "greet"),
        (UPGRADE + b"\x01\x00\x00\x04\x01", "1025 bytes"),
        (UPGRADE + b"\x06\x00\x00\x00\x00", "expected frame type 0x01"),
        # A key to which nothing can be sealed.
        (UPGRADE + encode_server_key(NodePublic(bytes(32))), "no box"),
    ],
)
async def test_relays_that_are_none(
    answer: bytes, problem: str, autojump_clock: trio.testing.MockClock
) -> None:
    error = await fail_with(answer)
    assert problem in str(error)
    assert str(error).startswith(("900a: ", "the relay closed"))


async def test_a_relay_that_says_nothing_is_left_after_ten_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    error = await fail_with(b"HTTP/1.1 101 Switching", close=False)
    assert str(error) == "no connection within 10.0 s"
    assert trio.current_time() == 10


async def test_a_relay_that_does_not_admit_us_is_left_after_ten_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with attempting(Way([NODE], connect=relay.connect)) as attempt:
        end = await relay.accept()
        await end.upgrade()
    assert str(attempt.error) == "no connection within 10.0 s"


async def test_a_forged_server_info(autojump_clock: trio.testing.MockClock) -> None:
    relay = MemoryRelay()
    async with attempting(Way([NODE], connect=relay.connect)) as attempt:
        end = await relay.accept()
        await end.upgrade()
        await end.stream.send_all(b"\x03\x00\x00\x00\x35" + bytes(0x35))
    assert "does not open" in str(attempt.error)


async def test_a_cancelled_login_leaves_no_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    with trio.move_on_after(3):
        await log_in(
            Way([NODE], connect=relay.connect), CLIENT_KEY, INFO, preferred=True
        )
    end = await relay.accept()
    await end.read_head()
    assert await end.stream.receive_some() == b""


# -- fast start -------------------------------------------------------------


async def test_fast_start(tmp_path: Path) -> None:
    """Request, ClientInfo and NotePreferred in one write, and no 101 to read."""
    relay = MemoryRelay()
    chain = [make_certificate(), make_meta_certificate(RELAY_KEY.public())]
    node = replace(NODE, force_http=False, insecure_for_tests=True)
    async with attempting(Way([node], connect=relay.connect)) as attempt:
        tls = trio.SSLStream(
            (await relay.accept()).stream,
            context_of(chain, tmp_path),
            server_side=True,
            https_compatible=True,
        )
        end = RelayEnd(tls, ServerConnection(RELAY_KEY))
        received = bytes(await tls.receive_some())
        head, _, rest = received.partition(b"\r\n\r\n")
        assert b"\r\nDerp-Fast-Start: 1" in head
        end.connection.receive_data(rest)
        await tls.send_all(end.connection.data_to_send())  # ServerKey, all the same
        await end.admit()
        assert await end.next_frame() == NotePreferred(True)
    login = attempt.login
    assert login is not None
    assert login.fast_start
    assert login.server_key == RELAY_KEY.public()
    assert login.tls is not None
    assert login.tls.version == "TLSv1.3"


# -- websocket --------------------------------------------------------------


async def upgrade_to_websocket(end: RelayEnd) -> WebsocketStream:
    """Answer the request for a websocket."""
    await end.read_head()
    lines = end.request.split(b"\r\n")[1:-2]
    headers = [(name, value) for name, _, value in (x.partition(b": ") for x in lines)]
    answer = check_websocket_request(headers, b"GET")
    assert answer.speaks_derp
    await end.stream.send_all(encode_websocket_response(answer))
    return WebsocketStream(server=True)


async def test_a_login_by_websocket(autojump_clock: trio.testing.MockClock) -> None:
    relay = MemoryRelay()
    nodes = [replace(NODE, name="900x", stun_only=True), NODE]
    way = Way(nodes, websocket=True, headers=[("X-Y", "z")], connect=relay.connect)
    async with attempting(way) as attempt:
        end = await relay.accept()
        websocket = await upgrade_to_websocket(end)
        assert b"\r\nX-Y: z\r\n" in end.request
        assert b"Ideal-Node" not in end.request
        # A Ping of the websocket during the handshake is answered.
        await end.stream.send_all(b"\x89\x02hi")
        pong = bytes(await end.stream.receive_some())
        assert pong[:2] == b"\x8a\x82"
        assert bytes(map(operator.xor, pong[2:4], pong[6:])) == b"hi"  # its mask
        greeting = end.connection.data_to_send()
        for part in (greeting[:7], greeting[7:]):
            await end.stream.send_all(websocket.encode(part))
        end.connection.receive_data(
            websocket.receive_data(bytes(await end.stream.receive_some()))
        )
        assert end.connection.next_event() is not None
        end.connection.admit()
        await end.stream.send_all(websocket.encode(end.connection.data_to_send()))
    login = attempt.login
    assert login is not None
    assert login.channel.websocket is not None
    assert not login.fast_start
    assert end.connection.next_event() == NotePreferred(True)

    packet = SendPacket(PEER, bytes(65536))
    await login.channel.send(login.channel.connection.encode(packet))
    received = bytes(await end.stream.receive_some(1 << 20))
    assert received[1] & 0x7F == 126
    assert int.from_bytes(received[2:4], "big") == 32000  # Go's ends read no more
    end.connection.receive_data(websocket.receive_data(received))
    assert end.connection.next_event() == packet


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno", "no websocket: 403 No: no"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "no websocket: 200 OK: "),
        (UPGRADE, "no Upgrade: websocket"),
        (
            b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "wrong Sec-WebSocket-Accept",
        ),
    ],
)
async def test_answers_that_open_no_websocket(
    answer: bytes, problem: str, autojump_clock: trio.testing.MockClock
) -> None:
    error = await fail_with(answer, way=Way([NODE], websocket=True))
    assert problem in str(error)
    # There is nothing left to fall back to.
    assert not isinstance(error, UpgradeRefusedError)


async def test_text_in_a_websocket(autojump_clock: trio.testing.MockClock) -> None:
    relay = MemoryRelay()
    way = Way([NODE], websocket=True, connect=relay.connect)
    async with attempting(way) as attempt:
        end = await relay.accept()
        await upgrade_to_websocket(end)
        await end.stream.send_all(b"\x81\x02hi")
    assert "binary messages" in str(attempt.error)


async def test_frames_before_server_info_are_skipped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with attempting(Way([NODE], connect=relay.connect)) as attempt:
        end = await relay.accept()
        await end.upgrade()
        await end.stream.send_all(b"\x7f\x00\x00\x00\x01x")
        await end.admit()
    assert attempt.login is not None
    assert attempt.login.channel.connection.next_event() is None
