"""TCP, proxies and TLS to a name."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing
import trustme

from tailnet.errors import ConnectError
from tailnet.proxy import Proxy
from tailnet.transport import (
    connect_tcp,
    connect_through,
    host_targets,
    ip_version,
    race_tcp,
    start_host_tls,
)

V4, V6 = socket.AF_INET, socket.AF_INET6
PROXY = Proxy("192.0.2.80", 3128, user="me", password="secret")
CA = trustme.CA()


def test_targets_of_a_host() -> None:
    assert host_targets("derp.test") == [("derp.test", V4), ("derp.test", V6)]
    assert host_targets("192.0.2.1") == [("192.0.2.1", V4)]
    assert host_targets("2001:db8::1") == [("2001:db8::1", V6)]
    assert (ip_version("::1"), ip_version("1.2.3.4"), ip_version("a")) == (6, 4, None)


async def test_no_answer_is_an_os_error(autojump_clock: trio.testing.MockClock) -> None:
    async def connect(*_: object) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(TimeoutError, match=r"no connection within 2\.0 s"):
        await race_tcp([("derp.test", V4)], 1, timeout=2.0, connect=connect)
    assert trio.current_time() == 2


async def test_connect_tcp_takes_the_family_it_is_told() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        stream = await connect_tcp("127.0.0.1", port, V4)
        async with stream, await listener.accept():
            assert isinstance(stream, trio.SocketStream)
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with pytest.raises(OSError, match="family"):
            await connect_tcp("127.0.0.1", port, V6)
    with pytest.raises(ConnectionRefusedError):
        await connect_tcp("127.0.0.1", port, V4)


# -- proxies ----------------------------------------------------------------


Serve = Callable[[trio.abc.Stream], Awaitable[None]]


class Proxies:
    """Connects to a proxy in memory; ``serve`` is what that does."""

    def __init__(self, nursery: trio.Nursery, serve: Serve) -> None:
        self._nursery = nursery
        self._serve = serve
        self.dialed: list[tuple[str, int, socket.AddressFamily]] = []
        self.near: trio.abc.Stream | None = None

    async def connect(
        self, host: str, port: int, family: socket.AddressFamily
    ) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.dialed.append((host, port, family))
        self.near, far = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve, far)
        return self.near


@contextlib.asynccontextmanager
async def proxying(serve: Serve) -> AsyncIterator[Proxies]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            yield Proxies(nursery, serve)
            nursery.cancel_scope.cancel()


async def read_head(stream: trio.abc.Stream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = await stream.receive_some()
        assert chunk, "closed within the head"
        head += chunk
    return head


def answering(answer: bytes, heads: list[bytes] | None = None) -> Serve:
    async def serve(stream: trio.abc.Stream) -> None:
        head = await read_head(stream)
        if heads is not None:
            heads.append(head)
        await stream.send_all(answer)
        while data := await stream.receive_some():
            await stream.send_all(data.swapcase())

    return serve


async def test_through_a_proxy(autojump_clock: trio.testing.MockClock) -> None:
    heads: list[bytes] = []
    async with proxying(answering(b"HTTP/1.1 200 OK\r\n\r\n", heads)) as proxies:
        stream = await connect_through(
            PROXY, "derp.test", 443, timeout=5, connect=proxies.connect
        )
        assert proxies.dialed == [("192.0.2.80", 3128, V4)]
        assert heads[0].startswith(b"CONNECT derp.test:443 HTTP/1.1\r\n")
        assert b"\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n" in heads[0]
        await stream.send_all(b"Hello")
        assert await stream.receive_some() == b"hELLO"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "407 Proxy Authentication Required",
        ),
        (b"HTTP/1.1 502\r\n\r\n", "502"),
        (b"HTTP/1.1 200 OK\r\n\r\nhi", "it sent something of its own"),
        (b"SSH-2.0-x\r\n\r\n", "the proxy's answer is not HTTP"),
    ],
)
async def test_refusals(
    answer: bytes, problem: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with proxying(answering(answer)) as proxies:
        with pytest.raises(ConnectError) as caught:
            await connect_through(PROXY, "a", 1, timeout=5, connect=proxies.connect)
        assert str(caught.value).startswith(f"proxy http://192.0.2.80:3128: {problem}")
        assert "secret" not in str(caught.value)
        assert proxies.near is not None
        with pytest.raises(trio.ClosedResourceError):
            await proxies.near.send_all(b"x")


async def test_a_proxy_that_hangs_up(autojump_clock: trio.testing.MockClock) -> None:
    async with proxying(lambda stream: stream.aclose()) as proxies:
        with pytest.raises(ConnectError, match=r"proxy .* was closed"):
            await connect_through(PROXY, "a", 1, timeout=5, connect=proxies.connect)


async def test_a_proxy_that_says_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def serve(_: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with proxying(serve) as proxies:
        with pytest.raises(ConnectError, match=r"proxy .*: no connection within 5 s"):
            await connect_through(PROXY, "a", 1, timeout=5, connect=proxies.connect)
        assert trio.current_time() == 5
        assert proxies.near is not None
        with pytest.raises(trio.ClosedResourceError):
            await proxies.near.send_all(b"x")


async def test_a_proxy_that_is_not_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def connect(*_: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError("refused")

    with pytest.raises(ConnectError, match=r"proxy http://192\.0\.2\.80:3128: refused"):
        await connect_through(PROXY, "a", 1, timeout=5, connect=connect)


# -- TLS --------------------------------------------------------------------


def server_context(name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CA.issue_cert(name).configure_cert(context)
    return context


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


def tls_serving(name: str, serve: Serve) -> Serve:
    async def serve_tls(stream: trio.abc.Stream) -> None:
        tls = trio.SSLStream(
            stream, server_context(name), server_side=True, https_compatible=True
        )
        try:
            await tls.do_handshake()
            await serve(tls)
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(tls)

    return serve_tls


async def test_an_https_proxy_and_tls_within() -> None:
    inner = tls_serving("derp.test", answering(b"HTTP/1.1 418 Tea\r\n\r\n"))

    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        await inner(stream)

    proxy = Proxy("proxy.test", 443, tls=True)
    async with proxying(tls_serving("proxy.test", serve)) as proxies:
        stream = await connect_through(
            proxy,
            "derp.test",
            443,
            timeout=5,
            context=trusting(),
            connect=proxies.connect,
        )
        tls = await start_host_tls(stream, "derp.test", context=trusting())
        await tls.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert await tls.receive_some() == b"HTTP/1.1 418 Tea\r\n\r\n"


async def test_an_https_proxy_with_a_wrong_certificate() -> None:
    proxy = Proxy("proxy.test", 443, tls=True)
    async with proxying(tls_serving("other.test", answering(b""))) as proxies:
        with pytest.raises(
            ConnectError, match=r"proxy https://proxy\.test:443: TLS failed: Hostname"
        ):
            await connect_through(
                proxy, "a", 1, timeout=5, context=trusting(), connect=proxies.connect
            )


async def test_the_system_does_not_know_our_ca() -> None:
    async with proxying(tls_serving("derp.test", answering(b""))) as proxies:
        stream = await proxies.connect("derp.test", 443, V4)
        with pytest.raises(ConnectError, match=r"TLS failed: .*certificate"):
            await start_host_tls(stream, "derp.test")
