"""A relay that is part of the server is where the server is.

coder ``tailnet/conn.go`` RewriteDERPMapDefaultRelay: the map names the
server's own access URL, which need not be the one by which we reach it.
"""

from __future__ import annotations

from dataclasses import replace

from tailnet.derp.derpmap import DERPMap, DERPRegion
from tailnet.sdk.access import Access

__all__ = ("rewrite_embedded_relays",)


def rewrite_embedded_relays(derp_map: DERPMap, access: Access) -> DERPMap:
    """Point the relays of embedded regions at the server as we reach it.

    Nodes with STUN only, and other regions, stay as they are.
    """
    if derp_map.regions is None:
        return derp_map
    regions = {
        region_id: None if region is None else _rewrite(region, access)
        for region_id, region in derp_map.regions.items()
    }
    return replace(derp_map, regions=regions)


def _rewrite(region: DERPRegion, access: Access) -> DERPRegion:
    if not region.embedded_relay or region.nodes is None:
        return region
    return replace(
        region,
        nodes=tuple(
            node
            if node.stun_only
            else replace(
                node,
                host_name=access.host,
                derp_port=access.port,
                force_http=access.scheme == "http",
            )
            for node in region.nodes
        ),
    )
