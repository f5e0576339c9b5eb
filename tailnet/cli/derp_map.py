"""``tailnet derp-map``: which relays the server sends its peers to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from tailnet.cli.command import Command, output_option
from tailnet.cli.login import resolve_login, server_options
from tailnet.cli.output import OutputFormat, print_table
from tailnet.cli.remote import access_of, run_on_server

if TYPE_CHECKING:
    from tailnet.derp.derpmap import DERPMap, DERPNode

__all__ = ("derp_map",)

_HEADERS = ("REGION", "CODE", "NAME", "NODE", "HOST", "DERP", "STUN", "NOTES")

# tailcfg/derpmap.go: what 0 means.
_DEFAULT_DERP_PORT = 443
_DEFAULT_STUN_PORT = 3478


@click.command("derp-map", cls=Command)
@click.option(
    "--as-served",
    is_flag=True,
    help="Leave embedded relays at the access URL, instead of the URL in use here.",
)
@server_options
@output_option
def derp_map(
    url: str | None, token: str | None, *, as_served: bool, output: OutputFormat
) -> None:
    """Show the server's relays and STUN servers.

    With -o json the DERP map itself, as --derp-config-path takes it.
    """
    from tailnet.derp.derpmap import encode_derp_map
    from tailnet.sdk.embedded import rewrite_embedded_relays

    login = resolve_login(url, token)
    info = run_on_server(login, lambda client: client.connection_info())
    found = info.derp_map
    if not as_served:
        found = rewrite_embedded_relays(found, access_of(login))
    if output is OutputFormat.JSON:
        import msgspec

        click.echo(msgspec.json.format(encode_derp_map(found), indent=2).decode())
    else:
        print_table(_HEADERS, _rows(found))


def _rows(found: DERPMap) -> Iterator[tuple[object, ...]]:
    for region_id, region in sorted((found.regions or {}).items()):
        if region is None:
            continue
        about = (region_id, region.region_code, region.region_name)
        notes = [
            *(["embedded"] if region.embedded_relay else []),
            *(["never home"] if region.no_measure_no_home else []),
        ]
        nodes = region.nodes or ()
        if not nodes:
            yield (*about, None, None, None, None, ", ".join(notes))
        for node in nodes:
            yield (*about, *_node_cells(node), ", ".join([*notes, *_notes(node)]))


def _node_cells(node: DERPNode) -> tuple[object, ...]:
    derp = None if node.stun_only else node.derp_port or _DEFAULT_DERP_PORT
    stun = None if node.stun_port < 0 else node.stun_port or _DEFAULT_STUN_PORT
    return node.name, node.host_name, derp, stun


def _notes(node: DERPNode) -> Iterator[str]:
    if node.force_http:
        yield "plain HTTP"
    if node.insecure_for_tests:
        yield "certificate not checked"
    if node.cert_name:
        yield f"certificate: {node.cert_name}"
    addresses = [text for text in (node.ipv4, node.ipv6) if text]
    if addresses:
        yield f"addresses: {' '.join(addresses)}"
