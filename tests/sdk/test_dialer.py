"""One dial of the API; what the dialer makes of several, test_controller asks."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import pytest
import trio
import trio.testing
import trustme

from tailnet.errors import ApiError, ConnectError
from tailnet.sdk.access import Access
from tailnet.sdk.dialer import Dialer, dial_websocket

CA = trustme.CA()

# RFC 6455 1.3; the key is ours to choose in these tests.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


@pytest.fixture(autouse=True)
def _known_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailnet.sdk.dialer.generate_websocket_key", lambda: KEY)


class Server:
    """Answers each connection with the same bytes, and notes the request."""

    def __init__(self, nursery: trio.Nursery, answer: bytes) -> None:
        self.nursery = nursery
        self.answer = answer
        self.request = b""
        self.context: ssl.SSLContext | None = None

    async def connect(
        self, host: str, port: int, family: socket.AddressFamily
    ) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if family == socket.AF_INET6:
            raise OSError("no IPv6 here")
        near, far = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._serve, far)
        return near

    async def _serve(self, far: trio.abc.Stream) -> None:
        stream = far
        if self.context is not None:
            stream = trio.SSLStream(
                far, self.context, server_side=True, https_compatible=True
            )
        with suppress(trio.BrokenResourceError):
            while b"\r\n\r\n" not in self.request:
                self.request += await stream.receive_some()
            await stream.send_all(self.answer)
            await stream.receive_some()


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[Server]:
    with trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            yield Server(nursery, answer)
            nursery.cancel_scope.cancel()


def access(server: Server, url: str = "http://coder.test:3000/prefix") -> Access:
    return Access.parse(
        url, "token", headers=[("X-Gateway", "yes")], connect=server.connect
    )


async def test_the_request(autojump_clock: trio.testing.MockClock) -> None:
    async with answering(SWITCH + b"\x82\x01x") as server:
        dialed = await dial_websocket(access(server), "/api/v2/tailnet?version=2.0")
        assert dialed.rest == b"\x82\x01x"
        assert server.request == (
            b"GET /prefix/api/v2/tailnet?version=2.0 HTTP/1.1\r\n"
            b"Host: coder.test:3000\r\n"
            b"User-Agent: tailnet\r\n"
            b"Connection: Upgrade\r\n"
            b"Upgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Coder-Session-Token: token\r\n"
            b"X-Gateway: yes\r\n\r\n"
        )
        async with dialed.open_link() as link:
            assert await link.receive() == b"x"


async def test_over_tls() -> None:
    async with answering(SWITCH) as server:
        server.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        CA.issue_cert("coder.test").configure_cert(server.context)
        context = ssl.create_default_context()
        CA.configure_trust(context)
        url = "https://coder.test"
        trusted = Access.parse(url, tls_context=context, connect=server.connect)
        dialed = await dial_websocket(trusted, "/x")
        assert b"\r\nHost: coder.test\r\n" in server.request
        assert b"Coder-Session-Token" not in server.request
        await trio.aclose_forcefully(dialed.stream)
        with pytest.raises(ConnectError, match=r"https://coder\.test: TLS failed: .*"):
            await dial_websocket(access(server, url), "/x")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (SWITCH.replace(b"s3p", b"xxx"), "a wrong Sec-WebSocket-Accept"),
        (
            SWITCH[:-2] + b"Sec-WebSocket-Protocol: derp\r\n\r\n",
            "subprotocol",
        ),
        (
            SWITCH[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
            "extensions that were not offered",
        ),
        (b"HTTP/1.1 101", "no connection within 10 s"),
    ],
)
async def test_servers_that_are_none(
    answer: bytes, problem: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with answering(answer) as server:
        with pytest.raises(ConnectError, match=problem) as caught:
            await dial_websocket(access(server), "/x")
        assert str(caught.value).startswith("http://coder.test:3000/prefix: ")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            b"404 x\r\nContent-Type: application/json\r\n\r\n" + b'{"message":"No."}',
            "No. (status 404)",
        ),
        (
            b"200 OK\r\nContent-Type: text/html\r\n\r\nhome",
            "unexpected non-JSON response (text/html); home (status 200)",
        ),
        (
            b"302 x\r\nContent-Length: 0\r\n\r\n",
            "unexpected non-JSON response (nothing) (status 302)",
        ),
    ],
)
async def test_refusals(
    answer: bytes, text: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with answering(b"HTTP/1.1 " + answer) as server:
        with pytest.raises(ApiError) as caught:
            await dial_websocket(access(server), "/x")
        assert str(caught.value) == text


async def test_nobody_there(autojump_clock: trio.testing.MockClock) -> None:
    async def connect(*_: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError("refused")

    with pytest.raises(ConnectError, match=r"http://coder\.test: refused"):
        await dial_websocket(Access.parse("http://coder.test", connect=connect), "/x")


async def test_a_dialer_gives_up_only_before_it_ever_got_in(
    autojump_clock: trio.testing.MockClock,
) -> None:
    no = b"HTTP/1.1 403 x\r\nContent-Length: 0\r\n\r\n"
    random: Callable[[], float] = lambda: 0.0  # noqa: E731
    async with answering(SWITCH) as server:
        dialer = Dialer(
            access(server),
            "/x",
            version="2.0",
            random=random,
            now=lambda: datetime.now(UTC),
        )
        await dialer.dial()
        server.answer = no
        with trio.move_on_after(60) as scope:
            await dialer.dial()
        assert scope.cancelled_caught
        assert dialer.dials > 10
        assert dialer.connects == 1
        fresh = Dialer(
            access(server),
            "/x",
            version="2.0",
            random=random,
            now=lambda: datetime.now(UTC),
        )
        with pytest.raises(ApiError, match="status 403"):
            await fresh.dial()
