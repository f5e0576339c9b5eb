from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine

import httpx2
import pytest
import trio
import trio.testing

from relay.derp.session import Newcomer
from relay.verify import MAX_ANSWER_LEN, TIMEOUT, open_url_admission
from tailnet.derp.handshake import ClientInfo
from tailnet.keys import NodePublic

URL = "http://controller.example/verify"
KEY = NodePublic(bytes(range(32)))
REMOTE = ("192.0.2.1", 1234)

Handler = Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]]


async def ask(
    handler: Handler,
    *,
    is_fail_open: bool = True,
    remote: tuple[str, int] | None = REMOTE,
) -> str | None:
    transport = httpx2.MockTransport(handler)
    async with open_url_admission(
        URL, is_fail_open=is_fail_open, transport=transport
    ) as admit:
        return await admit(Newcomer(KEY, ClientInfo(), remote))


def answering(status: int, body: bytes = b"") -> Handler:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        return httpx2.Response(status, content=body)

    return handler


@pytest.mark.parametrize(
    ("remote", "source"), [(REMOTE, "192.0.2.1"), (None, ""), (("::1", 1), "::1")]
)
async def test_question(remote: tuple[str, int] | None, source: str) -> None:
    asked: list[httpx2.Request] = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        asked.append(request)
        return httpx2.Response(200, content=b'{"Allow":true}')

    assert await ask(handler, remote=remote) is None
    (request,) = asked
    assert (request.method, str(request.url)) == ("POST", URL)
    assert request.content == (
        b'{"NodePublic":"nodekey:'
        + KEY.hex.encode()
        + b'","Source":"'
        + source.encode()
        + b'"}'
    )
    assert "content-type" not in request.headers


@pytest.mark.parametrize(
    "body",
    [
        b'{"Allow":true}',
        b'{"aLLOW":true,"Other":[1]}',
        b' {"Allow":false,"allow":true}\n',
        b'{"Allow":true} and more',
    ],
)
async def test_allowed(body: bytes) -> None:
    assert await ask(answering(200, body), is_fail_open=False) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"true",
        b'{"Allow":false}',
        b'{"Allow":null}',
        b'{"Allow":"true"}',
        b'{"Allow":1}',
        b'{"Allow":true',
        b'\xff{"Allow":true}',
        b"[" * 4000,
        b" " * MAX_ANSWER_LEN + b'{"Allow":true}',
    ],
)
async def test_not_allowed(body: bytes) -> None:
    """An answer that is no yes is a no, whatever fail-open says."""
    assert await ask(answering(200, body), is_fail_open=True) is not None


@pytest.mark.parametrize("status", [201, 204, 400, 403, 500, 503])
async def test_other_status_is_a_no(status: int) -> None:
    refusal = await ask(answering(status, b'{"Allow":true}'), is_fail_open=True)
    assert refusal is not None
    assert str(status) in refusal


@pytest.mark.parametrize("is_fail_open", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("refused"),
        httpx2.RemoteProtocolError("nonsense"),
        OSError("no route"),
    ],
)
async def test_unreachable(is_fail_open: bool, error: Exception) -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        raise error

    refusal = await ask(handler, is_fail_open=is_fail_open)
    assert (refusal is None) is is_fail_open


@pytest.mark.parametrize("is_fail_open", [False, True])
async def test_no_answer_in_time(
    autojump_clock: trio.testing.MockClock, is_fail_open: bool
) -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        await trio.sleep_forever()
        raise AssertionError

    refusal = await ask(handler, is_fail_open=is_fail_open)
    assert trio.current_time() == TIMEOUT
    assert (refusal is None) is is_fail_open


async def test_answer_is_read_no_further_than_needed() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 1000

    async def handler(request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        return httpx2.Response(200, content=endless())

    with trio.fail_after(10):
        assert await ask(handler) is not None


async def test_redirects_are_followed_with_the_question() -> None:
    bodies = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        bodies.append(await request.aread())
        if request.url.path == "/verify":
            return httpx2.Response(307, headers={"Location": "/other"})
        return httpx2.Response(200, content=b'{"Allow":true}')

    assert await ask(handler, is_fail_open=False) is None
    assert len(bodies) == 2
    assert json.loads(bodies[1])["NodePublic"] == str(KEY)


@pytest.mark.parametrize("is_fail_open", [False, True])
async def test_circle_of_redirects_is_no_answer(is_fail_open: bool) -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        return httpx2.Response(307, headers={"Location": "/verify"})

    refusal = await ask(handler, is_fail_open=is_fail_open)
    assert (refusal is None) is is_fail_open


async def test_over_a_real_connection() -> None:
    """Two questions over one connection of HTTP/1.1."""
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        received = b""
        async for data in stream:
            received += data
            if received.endswith(b'"Source":"192.0.2.1"}'):
                received = b""
                await stream.send_all(
                    b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"Allow":true}'
                )

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        url = f"http://127.0.0.1:{port}/verify"
        with trio.fail_after(10):
            async with open_url_admission(url, is_fail_open=False) as admit:
                for _ in range(2):
                    newcomer = Newcomer(KEY, ClientInfo(), REMOTE)
                    assert await admit(newcomer) is None
        nursery.cancel_scope.cancel()
    assert connections == 1


async def test_waiting_for_a_connection_is_no_fault_of_the_controller(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crowd could fill our own connections, and be let in for that."""
    monkeypatch.setattr("relay.verify.MAX_CONNECTIONS", 2)
    answers: list[str | None] = []

    async def slow(_request: httpx2.Request) -> httpx2.Response:
        await trio.sleep(TIMEOUT - 1)
        return httpx2.Response(200, content=b'{"Allow":false}')

    async with open_url_admission(
        URL, is_fail_open=True, transport=httpx2.MockTransport(slow)
    ) as admit:

        async def come() -> None:
            answers.append(await admit(Newcomer(KEY, ClientInfo(), REMOTE)))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(come)
    assert answers == ["admission controller: no"] * 6
