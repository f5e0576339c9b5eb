"""What the debug pages show of the coordinator: values, JSON and HTML, no I/O.

The JSON is documented in ``docs/reference/api.md`` and stays as it is: fields
are added, and ``version`` counts changes that break readers. The HTML is for
people and may change.

Why a path is relayed, as far as the server can know: what it told peers
itself, and what they publish. It does not see NATs or firewalls.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from tailnet.control.convert import disco_key_from_proto, node_key_from_proto
from tailnet.control.proto import tailnet_pb2
from tailnet.errors import RemoteProtocolError

__all__ = ("VIEW_VERSION", "CoordinatorView", "PeerView", "view_html", "view_json")

VIEW_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class PeerView:
    """A peer of the coordinator.

    Attributes:
        id: Its own.
        name: For people.
        kind: ``agent`` or ``client``.
        status: ``ok``, or ``lost`` if its stream is gone for the time being.
        since: When this status began, None if that is not known.
        node: What it published last, if anything.
    """

    id: UUID
    name: str
    kind: str
    status: str
    since: datetime | None
    node: tailnet_pb2.Node | None


@dataclass(frozen=True, slots=True)
class CoordinatorView:
    """The coordinator at one moment.

    Attributes:
        at: The moment.
        peers: All of them.
        tunnels: Source and destination of each.
        region_names: Of the DERP map, by region id.
        blocks_direct: The server tells peers to use relays only.
        forces_websockets: The server tells peers to reach relays by websocket.
    """

    at: datetime
    peers: Sequence[PeerView]
    tunnels: Sequence[tuple[UUID, UUID]]
    region_names: Mapping[int, str]
    blocks_direct: bool
    forces_websockets: bool


def _reasons(view: CoordinatorView, peer: PeerView | None) -> list[Mapping[str, str]]:
    """Why a peer has relayed paths only, or none."""
    if peer is None:
        return [_reason("not_connected", "has not connected")]
    if peer.status != "ok":
        return [_reason("lost", "lost its connection to the coordinator")]
    if peer.node is None:
        return [_reason("no_node", "has not published a node yet")]
    reasons = []
    if not peer.node.preferred_derp:
        reasons.append(_reason("no_home", "has no home region yet, and is ignored"))
    if not peer.node.endpoints:
        reasons.append(
            _reason(
                "no_endpoints",
                "publishes no endpoints: direct paths are off there, or UDP is blocked",
            )
        )
    for region, text in sorted(peer.node.derp_forced_websocket.items()):
        reasons.append(
            _reason(
                "forced_websocket",
                f"reaches region {region} by websocket only: {text}",
            )
        )
    return reasons


def _reason(code: str, text: str) -> Mapping[str, str]:
    return {"code": code, "text": text}


def view_json(view: CoordinatorView) -> Mapping[str, Any]:
    """The view as JSON values."""
    by_id = {peer.id: peer for peer in view.peers}
    return {
        "version": VIEW_VERSION,
        "at": view.at,
        "policy": {
            "disable_direct_connections": view.blocks_direct,
            "derp_force_websockets": view.forces_websockets,
        },
        "peers": [
            _peer_json(view, peer)
            for peer in sorted(view.peers, key=lambda p: (p.kind, p.name, p.id.bytes))
        ],
        "tunnels": [
            _tunnel_json(view, by_id, source, destination)
            for source, destination in sorted(
                view.tunnels, key=lambda t: (t[0].bytes, t[1].bytes)
            )
        ],
    }


def _peer_json(view: CoordinatorView, peer: PeerView) -> Mapping[str, Any]:
    return {
        "id": str(peer.id),
        "name": peer.name,
        "kind": peer.kind,
        "status": peer.status,
        "since": peer.since,
        "node": None if peer.node is None else _node_json(view, peer.node),
        "relayed_because": _reasons(view, peer),
    }


def _tunnel_json(
    view: CoordinatorView,
    by_id: Mapping[UUID, PeerView],
    source: UUID,
    destination: UUID,
) -> Mapping[str, Any]:
    reasons = []
    if view.blocks_direct:
        reasons.append(
            {
                "peer": None,
                **_reason("blocked_by_server", "the server allows relayed paths only"),
            }
        )
    for peer_id in (source, destination):
        reasons += [
            {"peer": str(peer_id), **reason}
            for reason in _reasons(view, by_id.get(peer_id))
        ]
    return {
        "source": str(source),
        "destination": str(destination),
        "relayed_because": reasons,
    }


def _node_json(view: CoordinatorView, node: tailnet_pb2.Node) -> Mapping[str, Any]:
    return {
        "id": node.id,
        "as_of": _as_of(node),
        "key": _short(lambda: node_key_from_proto(node.key).short),
        "disco": _short(lambda: disco_key_from_proto(node.disco).short),
        "preferred_derp": node.preferred_derp,
        "preferred_derp_name": view.region_names.get(node.preferred_derp, ""),
        "derp_latency": dict(sorted(node.derp_latency.items())),
        "derp_forced_websocket": {
            str(region): text
            for region, text in sorted(node.derp_forced_websocket.items())
        },
        "addresses": list(node.addresses),
        "endpoint_count": len(node.endpoints),
    }


def _as_of(node: tailnet_pb2.Node) -> datetime | None:
    if not node.HasField("as_of"):
        return None
    try:
        return node.as_of.ToDatetime(UTC)
    except (ValueError, OverflowError):
        return None  # peers may say anything


def _short(make: Callable[[], str]) -> str:
    try:
        return make()
    except RemoteProtocolError:
        return "(none)"


# -- for people --------------------------------------------------------------

_STYLE: Final = """\
:root { color-scheme: light dark; }
body { margin: 2rem; font: 15px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; margin: 0 0 2rem; }
th, td { text-align: left; padding: .25rem .75rem; border-bottom: 1px solid #8884; }
code { font-size: .9em; }
.lost { opacity: .6; }
"""


def view_html(view: CoordinatorView, title: str) -> bytes:
    """The view as a page."""
    data = view_json(view)
    names = {peer["id"]: peer["name"] or peer["id"] for peer in data["peers"]}
    policy = "allowed" if not view.blocks_direct else "blocked by the server"
    forced = ", and relays are reached by websocket only"
    text = "".join(
        (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            f"<p>{view.at.isoformat(timespec='seconds')}. Direct paths are {policy}",
            f"{forced if view.forces_websockets else ''}.</p>",
            f"<h2>{len(data['peers'])} peers</h2>",
            _table(
                ("name", "kind", "status", "since", "home", "endpoints", "node key",
                 "disco", "id", "relayed because"),
                (_peer_row(peer) for peer in data["peers"]),
            ),
            f"<h2>{len(data['tunnels'])} tunnels</h2>",
            _table(
                ("source", "destination", "relayed because"),
                (
                    (
                        names.get(tunnel["source"], tunnel["source"]),
                        names.get(tunnel["destination"], tunnel["destination"]),
                        "; ".join(
                            " ".join(
                                part
                                for part in (
                                    names.get(reason["peer"], reason["peer"] or ""),
                                    reason["text"],
                                )
                                if part
                            )
                            for reason in tunnel["relayed_because"]
                        ),
                    )
                    for tunnel in data["tunnels"]
                ),
            ),
            "</body></html>\n",
        )
    )  # fmt: skip
    return text.encode()


def _peer_row(peer: Mapping[str, Any]) -> Sequence[str]:
    node = peer["node"]
    since = "" if peer["since"] is None else peer["since"].isoformat(timespec="seconds")
    known = ("", "", "", "")
    if node is not None:
        home = f"{node['preferred_derp']} {node['preferred_derp_name']}".strip()
        known = (home, str(node["endpoint_count"]), node["key"], node["disco"])
    because = "; ".join(reason["text"] for reason in peer["relayed_because"])
    return (
        peer["name"], peer["kind"], peer["status"], since, *known, peer["id"], because,
    )  # fmt: skip


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<table><tr>", *(f"<th>{html.escape(head)}</th>" for head in heads)]
    for row in rows:
        lines.append("</tr><tr>")
        lines += (f"<td>{html.escape(cell)}</td>" for cell in row)
    return "".join((*lines, "</tr></table>"))
