"""The ways to a relay: nodes of a region, proxies, websockets."""

from __future__ import annotations

from dataclasses import replace
from socket import AF_INET, AddressFamily

import pytest
import trio
import trio.testing

from tailnet.derp.client import open_derp_client
from tailnet.derp.derpmap import DERPRegion
from tailnet.derp.events import (
    Connected,
    ConnectFailed,
    Disconnected,
)
from tailnet.derp.frames import (
    NotePreferred,
)
from tailnet.proxy import ProxyRules
from tests.derp.memory_relay import (
    CLIENT_KEY,
    NODE,
    MemoryRelay,
    wait_event,
)
from tests.derp.test_client import login, opening

# -- the nodes of a region --------------------------------------------------


def region_of(*names: str) -> DERPRegion:
    return DERPRegion(
        900,
        nodes=tuple(
            replace(NODE, name=name, derp_port=3340 + index, stun_only="stun" in name)
            for index, name in enumerate(names)
        ),
    )


async def test_a_node_that_fails_behind_tcp_leaves_the_others_their_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    region = region_of("900a", "900stun", "900b", "900c")
    async with open_derp_client(
        CLIENT_KEY, region, connect=relay.connect, random=lambda: 0.5
    ) as client:
        failed = []
        for port in (3340, 3342, 3343, 3340):
            end = await relay.accept()
            assert relay.dialed[-1][1] == port
            await end.stream.send_all(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n")
            failed.append(await wait_event(client, ConnectFailed))
        # The delays know nothing of nodes.
        assert [event.failures for event in failed] == [1, 2, 3, 4]
        end = await relay.admit()
        connected = await wait_event(client, Connected)
        assert connected.node.name == "900b"
        assert b"\r\nIdeal-Node: 900a\r\n" in end.request
        statistics = client.statistics()
        assert statistics.node == "900b"
        assert statistics.connects_by_node == {"900b": 1}
        assert statistics.dials_by_node == {"900a": 2, "900b": 2, "900c": 1}
        # It worked: the next time the first one comes first again.
        client.reconnect("")
        await wait_event(client, Disconnected)
        assert client.statistics().node is None
        await relay.admit()
        assert (await wait_event(client, Connected)).node.name == "900a"


async def test_nodes_that_do_not_answer_leave_the_others_their_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Six times 1.5 s is all that fits into the 10 s of one attempt."""
    relay = MemoryRelay()

    async def connect(host: str, port: int, family: AddressFamily) -> trio.abc.Stream:
        if port < 3349:
            await trio.sleep_forever()
        return await relay.connect(host, port, family)

    region = region_of(*(f"900{n}" for n in range(10)))
    async with open_derp_client(
        CLIENT_KEY, region, connect=connect, random=lambda: 0.5
    ) as client:
        failed = await wait_event(client, ConnectFailed)
        assert failed.reason == "no connection within 10.0 s"
        await relay.admit()
        assert (await wait_event(client, Connected)).node.name == "9009"
        assert trio.current_time() == pytest.approx(10 + 0.01 + 2 * 1.5)


async def test_a_fallback_stays_with_the_node(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with open_derp_client(
        CLIENT_KEY, region_of("900a", "900b"), connect=relay.connect
    ) as client:
        end = await relay.accept()
        await end.stream.send_all(REFUSAL)
        await wait_event(client, ConnectFailed)
        end = await relay.accept()
        assert b"\r\nUpgrade: websocket\r\n" in await end.read_head()
        assert relay.dialed[-1][1] == 3340


# -- proxies ----------------------------------------------------------------


@pytest.mark.parametrize("websocket", [False, True], ids=["derp", "websocket"])
async def test_a_proxy_from_the_environment(
    websocket: bool,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@192.0.2.80:3128")
    relay = MemoryRelay()
    async with opening(relay, force_websockets=websocket) as client:
        end = await relay.accept()
        assert relay.dialed == [("192.0.2.80", 3128, AF_INET)]
        # By its name, though the map has an address.
        assert await end.read_head() == (
            b"CONNECT derp.test:3340 HTTP/1.1\r\n"
            b"Host: derp.test:3340\r\n"
            b"User-Agent: tailnet\r\n"
            b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n\r\n"
        )
        await end.stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        if websocket:
            assert b"\r\nUpgrade: websocket\r\n" in await end.read_head()
            return
        await end.upgrade()
        await end.admit()
        connected = await client.wait_connected()
        assert connected.proxy == "http://192.0.2.80:3128"
        assert connected.remote == "derp.test:3340"


async def test_a_proxy_that_is_given_or_forbidden(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.80:3128")
    relay = MemoryRelay()
    async with opening(relay, proxies=ProxyRules()):
        await relay.accept()
        assert relay.dialed.pop()[0] == "192.0.2.1"
    rules = ProxyRules.always("http://192.0.2.81")
    async with opening(relay, proxies=rules) as client:
        end = await relay.accept()
        assert relay.dialed.pop()[:2] == ("192.0.2.81", 80)
        await end.read_head()
        await end.stream.send_all(b"HTTP/1.1 403 Filtered\r\n\r\n")
        failed = await wait_event(client, ConnectFailed)
        assert failed.reason == "900a: proxy http://192.0.2.81:80: 403 Filtered"
        # It was the proxy that refused, not the relay: no call for websockets.
        assert client.force_websocket_reason is None


async def test_a_wrong_setting_is_a_failed_attempt(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://192.0.2.80")
    async with opening(MemoryRelay()) as client:
        failed = await wait_event(client, ConnectFailed)
        assert failed.reason.startswith("900a: HTTP_PROXY: there is no support")


async def test_a_proxy_that_hangs_leaves_the_second_node_its_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with open_derp_client(
        CLIENT_KEY,
        region_of("900a", "900b"),
        proxies=ProxyRules.always("192.0.2.80"),
        connect=relay.connect,
    ) as client:
        end = await relay.accept()
        assert b"CONNECT derp.test:3340 " in await end.read_head()
        end = await relay.accept()
        assert trio.current_time() == 5
        assert b"CONNECT derp.test:3341 " in await end.read_head()
        await end.stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        await end.upgrade()
        await end.admit()
        assert (await client.wait_connected()).node.name == "900b"


async def test_note_preferred(autojump_clock: trio.testing.MockClock) -> None:
    relay = MemoryRelay()
    async with opening(relay, preferred=False) as client:
        end = await relay.admit()
        await client.wait_connected()
        client.note_preferred(False)  # no news
        client.note_preferred(True)
        assert await end.next_frame() == NotePreferred(True)
        client.note_preferred(False)
        assert await end.next_frame() == NotePreferred(False)
        client.note_preferred(True)
        assert await end.next_frame() == NotePreferred(True)
        client.reconnect("")
        await wait_event(client, Disconnected)
        await login(relay, client)  # which expects NotePreferred(True)


async def test_note_preferred_during_the_login(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        end = await relay.accept()
        await end.upgrade()
        await trio.testing.wait_all_tasks_blocked()
        client.note_preferred(False)
        await end.admit()
        assert await end.next_frame() == NotePreferred(True)
        assert await end.next_frame() == NotePreferred(False)


# -- websockets -------------------------------------------------------------


REFUSAL = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno"
REASON = (
    "GET failed with status code 426 (a proxy could be disallowing the use of "
    "'Upgrade: derp'): no"
)


async def test_fall_back_to_websockets_for_good(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    calls: list[tuple[int, str]] = []

    def on_fallback(region_id: int, reason: str) -> None:
        calls.append((region_id, reason))

    async with opening(relay, on_fallback=on_fallback) as client:
        assert client.force_websocket_reason is None
        end = await relay.accept()
        assert b"\r\nUpgrade: DERP\r\n" in await end.read_head()
        await end.stream.send_all(REFUSAL)
        failed = await wait_event(client, ConnectFailed)
        assert failed == ConnectFailed(
            f"the relay did not switch to DERP: {REASON}", 1, 0.01
        )
        assert client.force_websocket_reason == REASON
        assert client.statistics().force_websocket_reason == REASON
        for _ in range(3):
            end = await relay.accept()
            assert b"\r\nUpgrade: websocket\r\n" in await end.read_head()
            await end.stream.send_all(REFUSAL)
            await wait_event(client, ConnectFailed)
    assert calls == [(900, REASON)]


async def test_other_answers_do_not_call_for_websockets(
    autojump_clock: trio.testing.MockClock,
) -> None:
    relay = MemoryRelay()
    async with opening(relay) as client:
        for status in (200, 302, 503):
            end = await relay.accept()
            assert b"\r\nUpgrade: DERP\r\n" in await end.read_head()
            await end.stream.send_all(b"HTTP/1.1 %d x\r\n\r\n" % status)
            await end.stream.aclose()
            await wait_event(client, ConnectFailed)
        await login(relay, client)
        assert client.force_websocket_reason is None


async def test_forced_websockets(autojump_clock: trio.testing.MockClock) -> None:
    relay = MemoryRelay()
    async with opening(relay, force_websockets=True) as client:
        end = await relay.accept()
        assert b"\r\nUpgrade: websocket\r\n" in await end.read_head()
        assert b"\r\nSec-WebSocket-Protocol: derp\r\n" in end.request
        # It was not the relay that forced it.
        assert client.force_websocket_reason is None
