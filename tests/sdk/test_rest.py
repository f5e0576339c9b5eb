"""Requests of the API, on a transport in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import httpx2
import pytest
import trio
import trio.testing

from tailnet.errors import ApiError, ConfigError, ConnectError, RemoteProtocolError
from tailnet.proxy import ProxyRules
from tailnet.sdk.access import Access
from tailnet.sdk.rest import RestClient, open_rest_client

ID = UUID("11111111-1111-4111-8111-111111111111")
MAP = '{"derp_map":{"Regions":{}}}'

Handle = Callable[[httpx2.Request], httpx2.Response]


class Api:
    """Answers with ``text`` and notes the requests."""

    def __init__(self, text: str = "{}", status: int = 200, **headers: str) -> None:
        self.text = text
        self.status = status
        self.headers = {"Content-Type": "application/json", **headers}
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        return httpx2.Response(self.status, text=self.text, headers=self.headers)


@asynccontextmanager
async def asking(handle: Handle, **options: object) -> AsyncIterator[RestClient]:
    access = Access.parse("https://coder.test/prefix", "token", **options)  # type: ignore[arg-type]
    transport = httpx2.MockTransport(handle)
    async with open_rest_client(access, transport=transport) as client:
        yield client


async def test_paths_and_headers() -> None:
    async def headers() -> list[tuple[str, str]]:
        await trio.lowlevel.checkpoint()
        return [("X-Gateway", str(len(api.requests)))]

    api = Api(MAP)
    async with asking(api, headers=headers) as client:
        await client.connection_info()
        await client.connection_info(ID)
        api.text = f'{{"id":"{ID}","username":"me","name":"main"}}'
        assert (await client.user()).id == ID
        assert (await client.agent(ID)).name == "main"
        await client.workspace("dev")
        await client.workspace("a/b", owner="../x")
        assert (await client.build_info()).version == ""
        await client.debug_coordinator()
    base = "https://coder.test/prefix/api/v2"
    assert [str(request.url) for request in api.requests] == [
        f"{base}/workspaceagents/connection",
        f"{base}/workspaceagents/{ID}/connection",
        f"{base}/users/me",
        f"{base}/workspaceagents/{ID}",
        f"{base}/users/me/workspace/dev?include_deleted=false",
        f"{base}/users/..%2Fx/workspace/a%2Fb?include_deleted=false",
        f"{base}/buildinfo",
        f"{base}/debug/coordinator",
    ]
    assert {r.headers["Coder-Session-Token"] for r in api.requests} == {"token"}
    assert [r.headers["X-Gateway"] for r in api.requests] == list("01234567")
    assert api.requests[-1].headers["Accept"] == "application/json"


async def test_refusals() -> None:
    api = Api('{"message":"No.","detail":"Never"}', 403)
    async with asking(api) as client:
        with pytest.raises(ApiError, match=r"No\.; Never \(status 403\)"):
            await client.build_info()
        api.headers["Content-Type"] = "text/html"
        with pytest.raises(ApiError, match="non-JSON"):
            await client.build_info()


async def test_a_redirect_is_not_followed() -> None:
    api = Api("", 307, Location="https://elsewhere.test/")
    async with asking(api) as client:
        with pytest.raises(ConfigError, match=r"redirects to https://elsewhere\.test/"):
            await client.build_info()
    assert len(api.requests) == 1


async def test_answers_that_make_no_sense() -> None:
    api = Api("<html>")
    async with asking(api) as client:
        with pytest.raises(RemoteProtocolError):
            await client.build_info()
        with pytest.raises(RemoteProtocolError, match="to browsers only"):
            await client.debug_coordinator()
        api.text = "x" * (16 << 20) + "x"
        with pytest.raises(RemoteProtocolError, match="more than 16777216 bytes"):
            await client.build_info()


async def test_a_server_that_cannot_be_reached() -> None:
    def fail(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    async with asking(fail) as client:
        with pytest.raises(ConnectError, match=r"https://coder\.test/prefix: refused"):
            await client.build_info()


async def test_a_server_that_says_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Silent(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, _: httpx2.Request) -> httpx2.Response:
            await trio.sleep_forever()
            raise AssertionError

    access = Access.parse("https://coder.test")
    async with open_rest_client(access, transport=Silent()) as client:
        with pytest.raises(ConnectError, match="no answer within 30 s"):
            await client.build_info()
    assert trio.current_time() == 30


async def test_through_a_proxy() -> None:
    """On sockets: the library's own way to a proxy, with our rules."""
    heads: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        heads.append(bytes(await stream.receive_some()).partition(b"\r\n\r\n")[0])
        body = b'{"version":"v1"}'
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        rules = ProxyRules.always(f"http://me:secret@127.0.0.1:{port}")
        access = Access.parse("http://coder.test", proxies=rules)
        async with open_rest_client(access) as client:
            assert (await client.build_info()).version == "v1"
        nursery.cancel_scope.cancel()
    assert heads[0].startswith(b"GET http://coder.test/api/v2/buildinfo HTTP/1.1")
    assert b"Basic bWU6c2VjcmV0" in heads[0]


async def test_a_wrong_proxy() -> None:
    access = Access.parse("http://x", proxies=ProxyRules(http="socks5://y"))
    with pytest.raises(ConfigError, match="no support for socks5"):
        async with open_rest_client(access):
            pass
