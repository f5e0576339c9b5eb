"""The rules of ``coder`` tailnet/derpmap.go, as tables with JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from relay.derpmaps.build import (
    AccessUrl,
    MapOptions,
    build_derp_map,
    is_same_for_clients,
    parse_stun_servers,
)
from tailnet.derp.derpmap import (
    MAX_REGION_ID,
    DERPHomeParams,
    DERPMap,
    DERPNode,
    DERPRegion,
    decode_derp_map,
    encode_derp_map,
)
from tailnet.errors import ConfigError, DERPMapError

HTTPS = AccessUrl("https", "coder.example.com", 443)
HTTP = AccessUrl("http", "10.0.0.1", 3000)


def embedded(**fields: Any) -> dict[str, Any]:
    node = {
        "Name": "999b",
        "RegionID": 999,
        "HostName": "coder.example.com",
        "STUNPort": -1,
        "DERPPort": 443,
    }
    return {
        "EmbeddedRelay": True,
        "RegionID": 999,
        "RegionCode": "coder",
        "RegionName": "Coder Embedded Relay",
        "Nodes": [{**node, **fields}],
    }


def stun(region_id: int, host: str, port: int) -> dict[str, Any]:
    return {
        "EmbeddedRelay": False,
        "RegionID": region_id,
        "RegionCode": f"coder_stun_{region_id}",
        "RegionName": f"Coder STUN {region_id}",
        "Nodes": [
            {
                "Name": f"{region_id}stun0",
                "RegionID": region_id,
                "HostName": host,
                "STUNPort": port,
                "STUNOnly": True,
            }
        ],
    }


def custom(region_id: int, *nodes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "EmbeddedRelay": False,
        "RegionID": region_id,
        "RegionCode": "own",
        "RegionName": "Own",
        **fields,
        "Nodes": list(nodes),
    }


def node(name: str, region_id: int, **fields: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "RegionID": region_id,
        "HostName": f"{name}.example.com",
        **fields,
    }


def own_map(*regions: dict[str, Any], **fields: Any) -> DERPMap:
    text = json.dumps({"Regions": {r["RegionID"]: r for r in regions}, **fields})
    return decode_derp_map(text.encode())


def built(
    options: MapOptions,
    base: DERPMap | None = None,
    *,
    access_url: AccessUrl = HTTPS,
    stun_port: int | None = None,
) -> Any:
    made = build_derp_map(
        options, access_url=access_url, stun_port=stun_port, custom=base
    )
    return json.loads(encode_derp_map(made))


TWO_STUN = (("stun.example.com", 19302), ("192.0.2.7", 3478))

GOLDENS: list[tuple[str, MapOptions, DERPMap | None, dict[str, Any]]] = [
    ("defaults", MapOptions(), None, {"999": embedded()}),
    (
        "region of another name",
        MapOptions(region_id=5, region_code="x", region_name="X y"),
        None,
        {
            "5": {
                **embedded(Name="5b", RegionID=5),
                "RegionID": 5,
                "RegionCode": "x",
                "RegionName": "X y",
            }
        },
    ),
    (
        "a region per STUN server",
        MapOptions(stun_servers=TWO_STUN),
        None,
        {
            "999": embedded(),
            "1000": stun(1000, "stun.example.com", 19302),
            "1001": stun(1001, "192.0.2.7", 3478),
        },
    ),
    (
        "a later id if one is taken",
        MapOptions(stun_servers=TWO_STUN),
        own_map(custom(1000, node("a", 1000))),
        {
            "999": embedded(),
            "1000": custom(1000, node("a", 1000)),
            "1001": stun(1001, "stun.example.com", 19302),
            "1002": stun(1002, "192.0.2.7", 3478),
        },
    ),
    (
        "ids around one that is taken",
        MapOptions(stun_servers=TWO_STUN),
        own_map(custom(1001, node("a", 1001))),
        {
            "999": embedded(),
            "1000": stun(1000, "stun.example.com", 19302),
            "1001": custom(1001, node("a", 1001)),
            "1002": stun(1002, "192.0.2.7", 3478),
        },
    ),
    (
        "no embedded relay: STUN follows its id all the same",
        MapOptions(serve_embedded=False, stun_servers=TWO_STUN[:1]),
        own_map(custom(1, node("a", 1))),
        {
            "1": custom(1, node("a", 1)),
            "1000": stun(1000, "stun.example.com", 19302),
        },
    ),
    (
        "no direct connections",
        MapOptions(stun_servers=TWO_STUN, block_direct=True),
        own_map(
            custom(1, node("a", 1, STUNPort=3478), node("b", 1, STUNOnly=True)),
            custom(2, node("c", 2, STUNOnly=True)),
        ),
        {
            "1": custom(1, node("a", 1, STUNPort=-1)),
            "2": custom(2),
            "999": embedded(),
        },
    ),
    (
        "the custom map as it is",
        MapOptions(serve_embedded=False),
        own_map(custom(7, node("a", 7, CanPort80=True, IPv4="none"), Avoid=True)),
        {"7": custom(7, node("a", 7, CanPort80=True, IPv4="none"), Avoid=True)},
    ),
]


@pytest.mark.parametrize(
    ("options", "base", "regions"),
    [golden[1:] for golden in GOLDENS],
    ids=[golden[0] for golden in GOLDENS],
)
def test_map_of_options(
    options: MapOptions, base: DERPMap | None, regions: dict[str, Any]
) -> None:
    assert built(options, base) == {"Regions": regions}


def test_embedded_relay_in_bytes() -> None:
    """As ``json.Marshal`` of Coder's fork writes it, field by field."""
    made = build_derp_map(MapOptions(), access_url=HTTP, stun_port=3478)
    assert encode_derp_map(made) == (
        b'{"Regions":{"999":{"EmbeddedRelay":true,"RegionID":999,"RegionCode":"coder",'
        b'"RegionName":"Coder Embedded Relay","Nodes":[{"Name":"999b","RegionID":999,'
        b'"HostName":"10.0.0.1","STUNPort":3478,"DERPPort":3000,"ForceHTTP":true}]}}}'
    )


def test_own_stun_goes_when_direct_is_blocked() -> None:
    made = built(MapOptions(block_direct=True), stun_port=3478)
    assert made["Regions"]["999"]["Nodes"][0]["STUNPort"] == -1


def test_what_is_beside_the_regions_stays() -> None:
    base = own_map(
        custom(1, node("a", 1)),
        HomeParams={"RegionScore": {"1": 0.5}},
        omitDefaultRegions=True,
    )
    made = built(MapOptions(serve_embedded=False), base)
    assert made["HomeParams"] == {"RegionScore": {"1": 0.5}}
    assert made["omitDefaultRegions"] is True


@pytest.mark.parametrize(
    ("options", "text", "words"),
    [
        (MapOptions(serve_embedded=False), None, ["no DERP node", "--derp-server"]),
        (
            MapOptions(serve_embedded=False, stun_servers=TWO_STUN),
            None,
            ["no DERP node"],
        ),
        (
            MapOptions(serve_embedded=False),
            own_map(custom(1, node("a", 1, STUNOnly=True))),
            ["no DERP node"],
        ),
        (
            MapOptions(serve_embedded=False, block_direct=True),
            own_map(custom(1, node("a", 1, STUNOnly=True))),
            ["no DERP node"],
        ),
        (
            MapOptions(),
            own_map(custom(999, node("a", 999))),
            ["region 999", "RegionID", "--derp-server-region-id"],
        ),
        (
            MapOptions(),
            own_map(custom(1, node("999b", 1))),
            ["region 999", "node 999b", "Name", "region 1"],
        ),
        (MapOptions(), decode_derp_map(b'{"error":"no"}'), ["no Regions"]),
        (
            MapOptions(),
            decode_derp_map(b'{"Regions":{"5":null}}'),
            ["region 5", "null"],
        ),
        (
            MapOptions(),
            own_map(custom(1, node("a", 2))),
            ["region 1", "node a", "RegionID", "2"],
        ),
        (
            MapOptions(),
            own_map(custom(1, node("a", 1, DERPPort=70000))),
            ["region 1", "node a", "DERPPort", "70000"],
        ),
        (
            MapOptions(),
            own_map(custom(1, node("a", 1, HostName=""))),
            ["region 1", "node a", "HostName"],
        ),
        (
            MapOptions(region_id=MAX_REGION_ID, stun_servers=TWO_STUN),
            None,
            [f"region {MAX_REGION_ID}", "RegionID"],
        ),
        (MapOptions(region_id=0), None, ["region 0", "RegionID"]),
    ],
)
def test_map_that_nobody_could_use(
    options: MapOptions, text: DERPMap | None, words: list[str]
) -> None:
    with pytest.raises(DERPMapError) as caught:
        built(options, text)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


HOSTS = st.from_regex(r"[a-z0-9]{1,8}(\.[a-z]{1,3})?", fullmatch=True)
PORTS = st.integers(1, 65535)
OPTIONS = st.builds(
    MapOptions,
    region_id=st.integers(1, 1010),
    region_code=st.text(max_size=5),
    region_name=st.text(max_size=5),
    stun_servers=st.lists(st.tuples(HOSTS, PORTS), max_size=5).map(tuple),
    block_direct=st.booleans(),
)


@st.composite
def own_maps(draw: st.DrawFn, taken: int) -> DERPMap:
    ids = draw(st.sets(st.integers(1, 1010).filter(lambda i: i != taken), max_size=8))
    regions = {}
    for region_id in ids:
        nodes = tuple(
            DERPNode(
                name=f"own{region_id}-{index}",
                region_id=region_id,
                host_name=draw(HOSTS),
                stun_only=draw(st.booleans()),
                stun_port=draw(st.integers(-1, 65535)),
                derp_port=draw(st.integers(0, 65535)),
            )
            for index in range(draw(st.integers(0, 3)))
        )
        regions[region_id] = DERPRegion(region_id=region_id, nodes=nodes)
    return DERPMap(regions=regions)


@given(data=st.data(), options=OPTIONS, stun_port=st.none() | PORTS)
def test_any_options_give_a_map_that_clients_can_use(
    data: st.DataObject, options: MapOptions, stun_port: int | None
) -> None:
    base = data.draw(st.none() | own_maps(options.region_id))
    made = build_derp_map(options, access_url=HTTP, stun_port=stun_port, custom=base)
    made.validate()
    assert made.regions is not None
    nodes = [n for r in made.regions.values() for n in (r and r.nodes) or ()]
    assert any(not n.stun_only for n in nodes)
    if options.block_direct:
        assert all(n.stun_port == -1 and not n.stun_only for n in nodes)
    else:
        # Nobody is lost, and whoever was there has not changed.
        assert len(made.regions) == 1 + len(options.stun_servers) + len(
            (base and base.regions) or ()
        )
        if base is not None:
            assert base.regions is not None
            for region_id, region in base.regions.items():
                assert made.regions[region_id] == region
    assert decode_derp_map(encode_derp_map(made)) == made


# -- access URLs ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url", "again"),
    [
        ("https://a.example", AccessUrl("https", "a.example", 443), None),
        ("http://a.example", AccessUrl("http", "a.example", 80), None),
        ("http://a:80/", AccessUrl("http", "a", 80), "http://a"),
        ("https://a:80", AccessUrl("https", "a", 80), None),
        (
            "HTTPS://A.example",
            AccessUrl("https", "a.example", 443),
            "https://a.example",
        ),
        ("http://[::1]:3000", AccessUrl("http", "::1", 3000), None),
        ("http://192.0.2.1:1", AccessUrl("http", "192.0.2.1", 1), None),
    ],
)
def test_access_url(text: str, url: AccessUrl, again: str | None) -> None:
    assert AccessUrl.from_text(text) == url
    assert str(url) == (text if again is None else again)
    assert AccessUrl.from_text(str(url)) == url


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "http://"),
        ("a.example", "http://"),
        ("a.example:3000", "http://"),
        ("ftp://a.example", "http://"),
        ("//a.example", "http://"),
        ("http://", "host"),
        ("http:///x", "host"),
        ("http://:3000", "host"),
        ("http://a:0", "port"),
        ("http://a:70000", "URL"),
        ("http://a:b", "URL"),
        ("http://[::1", "URL"),
        ("http://a b", "white space"),
        ("http://a\n", "white space"),
        ("http://ä.example", "host"),
        ("http://u@a.example", "user"),
        ("http://a.example/coder", "follow"),
        ("http://a.example?x=1", "follow"),
        ("http://a.example#x", "follow"),
    ],
)
def test_no_access_url(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        AccessUrl.from_text(text)


@given(text=st.text(max_size=30) | st.text(max_size=20).map("http://".__add__))
def test_any_text_is_an_access_url_or_not(text: str) -> None:
    try:
        url = AccessUrl.from_text(text)
    except ConfigError:
        return
    assert AccessUrl.from_text(str(url)) == url
    build_derp_map(MapOptions(), access_url=url)


# -- STUN lists -------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "servers"),
    [
        ((), ()),
        (("a:1", "[2001:db8::1]:65535"), (("a", 1), ("2001:db8::1", 65535))),
        (("disable",), ()),
        (("a:1", "disable", "no server at all"), ()),
    ],
)
def test_stun_servers(
    entries: tuple[str, ...], servers: tuple[tuple[str, int], ...]
) -> None:
    assert parse_stun_servers(entries) == servers


@pytest.mark.parametrize(
    "entry", ["a", ":1", "a:", "a:x", "a:0", "a:65536", "a:1:2", "[a:1", "a:٣", ""]
)
def test_no_stun_server(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_stun_servers(("ok:1", entry))
    assert repr(entry) in str(caught.value)


# -- comparison -------------------------------------------------------------


def test_home_params_and_port_80_make_no_difference() -> None:
    one = own_map(custom(1, node("a", 1)))
    other = own_map(custom(1, node("a", 1, CanPort80=True)))
    scored = DERPMap(one.regions, DERPHomeParams({1: 0.5}))
    assert is_same_for_clients(one, one)
    assert is_same_for_clients(one, other)
    assert is_same_for_clients(scored, other)


@pytest.mark.parametrize(
    "other",
    [
        own_map(),
        own_map(custom(2, node("a", 2))),
        own_map(custom(1, node("a", 1)), custom(2, node("b", 2))),
        own_map(custom(1, node("a", 1), node("b", 1))),
        own_map(custom(1, node("a", 1, DERPPort=1))),
        own_map(custom(1, node("a", 1), RegionName="New")),
        own_map(custom(1, node("a", 1)), omitDefaultRegions=True),
        DERPMap(None),
        DERPMap({1: None}),
    ],
)
def test_everything_else_does(other: DERPMap) -> None:
    one = own_map(custom(1, node("a", 1)))
    assert not is_same_for_clients(one, other)
    assert not is_same_for_clients(other, one)


def test_regions_without_nodes_are_alike() -> None:
    one = DERPMap({1: DERPRegion(1, nodes=None)})
    assert is_same_for_clients(one, DERPMap({1: DERPRegion(1, nodes=())}))
