from __future__ import annotations

from dataclasses import replace

from tailnet.derp.derpmap import DERPMap, DERPNode, DERPRegion
from tailnet.sdk.access import Access
from tailnet.sdk.embedded import rewrite_embedded_relays

RELAY = DERPNode("999b", 999, "access-url.test", derp_port=443, stun_port=-1)
STUN = DERPNode("999s", 999, "stun.test", stun_only=True)
OTHER = DERPRegion(1, nodes=(DERPNode("1a", 1, "derp.test"),))


def test_only_relays_of_embedded_regions_move() -> None:
    embedded = DERPRegion(999, nodes=(RELAY, STUN), embedded_relay=True)
    derp_map = DERPMap({1: OTHER, 999: embedded, 2: None})
    seen = rewrite_embedded_relays(derp_map, Access.parse("http://10.0.0.1:3000"))
    moved = replace(RELAY, host_name="10.0.0.1", derp_port=3000, force_http=True)
    assert seen == DERPMap(
        {1: OTHER, 999: replace(embedded, nodes=(moved, STUN)), 2: None}
    )
    assert derp_map.region(999).nodes == (RELAY, STUN)


def test_https_and_back() -> None:
    plain = replace(RELAY, force_http=True, derp_port=80)
    derp_map = DERPMap({999: DERPRegion(999, nodes=(plain,), embedded_relay=True)})
    seen = rewrite_embedded_relays(derp_map, Access.parse("https://coder.test"))
    nodes = seen.region(999).nodes
    assert nodes == (replace(RELAY, host_name="coder.test"),)


def test_nothing_to_move() -> None:
    access = Access.parse("https://coder.test")
    for derp_map in (
        DERPMap(None),
        DERPMap({}),
        DERPMap({999: DERPRegion(999, nodes=None, embedded_relay=True)}),
    ):
        assert rewrite_embedded_relays(derp_map, access) == derp_map
