from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from relay.api.debug_view import CoordinatorView, PeerView, view_html, view_json
from tailnet.control.proto import tailnet_pb2
from tailnet.keys import DiscoPublic, NodePublic

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
AGENT, CLIENT, ABSENT = UUID(int=1), UUID(int=2), UUID(int=3)
KEY, DISCO = NodePublic(bytes(range(32))), DiscoPublic(bytes(range(32)))


def node(**changes: Any) -> tailnet_pb2.Node:
    fields: dict[str, Any] = {
        "id": 42,
        "key": b"np" + bytes(KEY),
        "disco": str(DISCO),
        "preferred_derp": 999,
        "derp_latency": {"999-v4": 0.001},
        "addresses": ["fd7a::1/128"],
        "endpoints": ["192.0.2.1:1", "192.0.2.1:2"],
    }
    message = tailnet_pb2.Node(**(fields | changes))
    message.as_of.FromDatetime(AT)
    return message


def peer(
    peer_id: UUID = AGENT,
    published: tailnet_pb2.Node | None = None,
    *,
    kind: str = "agent",
    name: str = "alice-dev-main",
    status: str = "ok",
) -> PeerView:
    return PeerView(peer_id, name, kind, status, AT, published)


def view(
    *peers: PeerView,
    tunnels: tuple[tuple[UUID, UUID], ...] = (),
    blocks_direct: bool = False,
    forces_websockets: bool = False,
) -> CoordinatorView:
    return CoordinatorView(
        AT, peers, tunnels, {999: "Embedded"}, blocks_direct, forces_websockets
    )


def codes(reasons: list[dict[str, str]]) -> list[str]:
    return [reason["code"] for reason in reasons]


def test_json_of_a_peer() -> None:
    data = msgspec.json.decode(
        msgspec.json.encode(view_json(view(peer(AGENT, node()))))
    )
    assert data == {
        "version": 1,
        "at": "2026-05-04T03:02:01Z",
        "policy": {
            "disable_direct_connections": False,
            "derp_force_websockets": False,
        },
        "peers": [
            {
                "id": str(AGENT),
                "name": "alice-dev-main",
                "kind": "agent",
                "status": "ok",
                "since": "2026-05-04T03:02:01Z",
                "node": {
                    "id": 42,
                    "as_of": "2026-05-04T03:02:01Z",
                    "key": "[AAECA]",
                    "disco": "d:0001020304050607",
                    "preferred_derp": 999,
                    "preferred_derp_name": "Embedded",
                    "derp_latency": {"999-v4": 0.001},
                    "derp_forced_websocket": {},
                    "addresses": ["fd7a::1/128"],
                    "endpoint_count": 2,
                },
                "relayed_because": [],
            }
        ],
        "tunnels": [],
    }


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (peer(AGENT, node()), []),
        (peer(AGENT, node(endpoints=[])), ["no_endpoints"]),
        (peer(AGENT, node(preferred_derp=0)), ["no_home"]),
        (peer(AGENT), ["no_node"]),
        (peer(AGENT, node(), status="lost"), ["lost"]),
        (
            peer(AGENT, node(derp_forced_websocket={999: "426", 2: "x"})),
            ["forced_websocket", "forced_websocket"],
        ),
    ],
)
def test_why_a_peer_is_relayed(subject: PeerView, expected: list[str]) -> None:
    (data,) = view_json(view(subject))["peers"]
    assert codes(data["relayed_because"]) == expected


def test_the_reason_for_websockets_is_told() -> None:
    forced = node(derp_forced_websocket={999: "unexpected status 426"})
    (data,) = view_json(view(peer(AGENT, forced)))["peers"]
    (reason,) = data["relayed_because"]
    assert reason["text"] == (
        "reaches region 999 by websocket only: unexpected status 426"
    )
    assert data["node"]["derp_forced_websocket"] == {"999": "unexpected status 426"}


def test_why_a_tunnel_is_relayed() -> None:
    data = view_json(
        view(
            peer(AGENT, node()),
            peer(CLIENT, node(endpoints=[]), kind="client"),
            tunnels=((CLIENT, AGENT), (CLIENT, ABSENT)),
            blocks_direct=True,
        )
    )
    to_agent, to_absent = data["tunnels"]
    assert (to_agent["source"], to_agent["destination"]) == (str(CLIENT), str(AGENT))
    assert [(r["peer"], r["code"]) for r in to_agent["relayed_because"]] == [
        (None, "blocked_by_server"),
        (str(CLIENT), "no_endpoints"),
    ]
    assert codes(to_absent["relayed_because"])[-1] == "not_connected"
    assert data["policy"]["disable_direct_connections"]


def test_peers_may_publish_anything() -> None:
    odd = node(key=b"short", disco="nonsense", preferred_derp=-7)
    odd.as_of.seconds = 1 << 60
    (data,) = view_json(view(peer(AGENT, odd)))["peers"]
    assert data["node"]["key"] == data["node"]["disco"] == "(none)"
    assert data["node"]["as_of"] is None
    assert data["node"]["preferred_derp_name"] == ""
    view_html(view(peer(AGENT, odd)), "x")


def test_order_does_not_depend_on_when_peers_came() -> None:
    peers = [
        peer(CLIENT, kind="client", name="b"),
        peer(AGENT, name="z"),
        peer(ABSENT, name="a"),
    ]
    names = [p["name"] for p in view_json(view(*peers))["peers"]]
    assert names == ["a", "z", "b"]
    assert view_json(view(*peers)) == view_json(view(*reversed(peers)))


def test_html() -> None:
    evil = "<script>alert(1)</script>"
    page = view_html(
        view(
            peer(AGENT, node(endpoints=[]), name=evil),
            peer(CLIENT, node(derp_forced_websocket={999: evil}), name="client"),
            tunnels=((CLIENT, AGENT), (CLIENT, ABSENT)),
            blocks_direct=True,
            forces_websockets=True,
        ),
        "Coordinator",
    ).decode()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<h2>2 peers</h2>" in page
    assert "<h2>2 tunnels</h2>" in page
    assert "999 Embedded" in page
    assert "[AAECA]" in page
    assert "blocked by the server, and relays are reached by websocket only." in page
    assert str(ABSENT) in page
