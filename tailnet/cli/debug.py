"""``tailnet debug``: what a server says of itself to those who run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from tailnet.cli.command import Group, output_option
from tailnet.cli.login import resolve_login, server_options
from tailnet.cli.output import OutputFormat, print_fields, print_json, print_table
from tailnet.cli.remote import run_on_server

__all__ = ("debug",)

_PEER_HEADERS = ("PEER", "NAME", "KIND", "STATUS", "SINCE", "HOME", "RELAYED BECAUSE")
_TUNNEL_HEADERS = ("FROM", "TO", "RELAYED BECAUSE")


@click.group(cls=Group)
def debug() -> None:
    """Look into a server; most of this is for its admins."""


@debug.command("coordinator")
@server_options
@output_option
def _coordinator(url: str | None, token: str | None, *, output: OutputFormat) -> None:
    """Show who is connected to the coordinator, and the tunnels.

    With -o json as the server says it: see its API reference.
    """
    login = resolve_login(url, token)
    view = run_on_server(login, lambda client: client.debug_coordinator())
    if output is OutputFormat.JSON:
        print_json(view)
        return
    # Of a server that may be newer than we are: what is missing is a dash.
    policy = _mapping(_mapping(view).get("policy"))
    peers = list(_list(_mapping(view).get("peers")))
    tunnels = list(_list(_mapping(view).get("tunnels")))
    print_fields(
        {
            "direct paths": _unless(policy.get("disable_direct_connections")),
            "raw DERP": _unless(policy.get("derp_force_websockets")),
            "peers": len(peers),
            "tunnels": len(tunnels),
        }
    )
    if peers:
        click.echo()
        print_table(_PEER_HEADERS, map(_peer_row, peers))
    if tunnels:
        names = {peer.get("id"): peer.get("name") for peer in peers}
        click.echo()
        print_table(_TUNNEL_HEADERS, (_tunnel_row(tunnel, names) for tunnel in tunnels))


def _unless(forbidden: object) -> str:
    return "-" if forbidden is None else "off" if forbidden else "allowed"


def _peer_row(peer: Mapping[str, Any]) -> tuple[object, ...]:
    node = _mapping(peer.get("node"))
    home = node.get("preferred_derp_name") or node.get("preferred_derp")
    columns = ("id", "name", "kind", "status", "since")
    return (*map(peer.get, columns), home, _reasons(peer))


def _tunnel_row(
    tunnel: Mapping[str, Any], names: Mapping[object, object]
) -> tuple[object, ...]:
    source, destination = tunnel.get("source"), tunnel.get("destination")
    return (
        names.get(source) or source,
        names.get(destination) or destination,
        _reasons(tunnel),
    )


def _reasons(entry: Mapping[str, Any]) -> str | None:
    texts = [str(r.get("text")) for r in _list(entry.get("relayed_because"))]
    return "; ".join(texts) or None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Iterator[Mapping[str, Any]]:
    return (_mapping(item) for item in (value if isinstance(value, list) else ()))
