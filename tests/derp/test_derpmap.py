"""DERP maps: JSON of Tailscale and Coder in, the same JSON out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tailnet.derp.derpmap import (
    MAX_REGION_ID,
    DERPHomeParams,
    DERPMap,
    DERPNode,
    DERPRegion,
    decode_derp_map,
    encode_derp_map,
)
from tailnet.errors import DERPMapError, LocalProtocolError

# Every field that there is, with a value that is not its zero.
FULL: dict[str, Any] = {
    "HomeParams": {"RegionScore": {"1": 0.8, "900": 2}},
    "Regions": {
        "1": None,
        "900": {
            "EmbeddedRelay": True,
            "RegionID": 900,
            "RegionCode": "own",
            "RegionName": "Our own",
            "Latitude": 52.52,
            "Longitude": -13,
            "Avoid": True,
            "NoMeasureNoHome": True,
            "Nodes": [
                {
                    "Name": "900a",
                    "RegionID": 900,
                    "HostName": "derp.example",
                    "CertName": "sha256-raw:" + "0f" * 32,
                    "IPv4": "192.0.2.1",
                    "IPv6": "none",
                    "STUNPort": -1,
                    "STUNOnly": True,
                    "DERPPort": 8443,
                    "InsecureForTests": True,
                    "ForceHTTP": True,
                    "STUNTestIP": "192.0.2.2",
                    "CanPort80": True,
                }
            ],
        },
    },
    "omitDefaultRegions": True,
}
FULL_MAP = DERPMap(
    home_params=DERPHomeParams({1: 0.8, 900: 2.0}),
    regions={
        1: None,
        900: DERPRegion(
            region_id=900,
            region_code="own",
            region_name="Our own",
            latitude=52.52,
            longitude=-13.0,
            avoid=True,
            no_measure_no_home=True,
            nodes=(
                DERPNode(
                    name="900a",
                    region_id=900,
                    host_name="derp.example",
                    cert_name="sha256-raw:" + "0f" * 32,
                    ipv4="192.0.2.1",
                    ipv6="none",
                    stun_port=-1,
                    stun_only=True,
                    derp_port=8443,
                    insecure_for_tests=True,
                    stun_test_ip="192.0.2.2",
                    can_port_80=True,
                    force_http=True,
                ),
            ),
            embedded_relay=True,
        ),
    },
    omit_default_regions=True,
)


def decode(value: object) -> DERPMap:
    return decode_derp_map(json.dumps(value).encode())


def encode(derp_map: DERPMap) -> Any:
    return json.loads(encode_derp_map(derp_map))


def with_node(**changes: object) -> dict[str, Any]:
    node = {"Name": "a", "RegionID": 1, "HostName": "h"} | changes
    return {"Regions": {"1": {"RegionID": 1, "Nodes": [node]}}}


# -- out and in -------------------------------------------------------------


def test_every_field_in_and_out() -> None:
    assert decode(FULL) == FULL_MAP
    assert encode(FULL_MAP) == FULL


def test_text_is_that_of_go() -> None:
    """Order of fields, order of regions, numbers without a point."""
    regions = {
        2: DERPRegion(2, "b", latitude=40.0, nodes=None),
        10: DERPRegion(10, nodes=(DERPNode("10a", 10, "h", stun_port=-1),)),
    }
    assert encode_derp_map(DERPMap(regions)) == (
        b'{"Regions":{'
        b'"10":{"EmbeddedRelay":false,"RegionID":10,"RegionCode":"","RegionName":"",'
        b'"Nodes":[{"Name":"10a","RegionID":10,"HostName":"h","STUNPort":-1}]},'
        b'"2":{"EmbeddedRelay":false,"RegionID":2,"RegionCode":"b","RegionName":"",'
        b'"Latitude":40,"Nodes":null}}}'
    )


@pytest.mark.parametrize(
    ("text", "derp_map"),
    [
        ('{"Regions":null}', DERPMap(None)),
        ('{"Regions":{}}', DERPMap({})),
        ('{"HomeParams":{},"Regions":null}', DERPMap(None, DERPHomeParams())),
        (
            '{"HomeParams":{"RegionScore":{}},"Regions":null}',
            DERPMap(None, DERPHomeParams({})),
        ),
        ('{"Regions":{"7":null}}', DERPMap({7: None})),
    ],
)
def test_null_and_empty_are_kept_apart(text: str, derp_map: DERPMap) -> None:
    assert decode_derp_map(text.encode()) == derp_map
    assert encode_derp_map(derp_map) == text.encode()


@pytest.mark.parametrize(
    ("value", "derp_map"),
    [
        ({}, DERPMap(None)),
        ({"HomeParams": None}, DERPMap(None)),
        ({"HomeParams": {"RegionScore": None}}, DERPMap(None, DERPHomeParams())),
        ({"omitDefaultRegions": None}, DERPMap(None)),
        ({"Regions": {"1": {"Nodes": None}}}, DERPMap({1: DERPRegion(0, nodes=None)})),
        ({"Regions": {"1": {}}}, DERPMap({1: DERPRegion(0, nodes=None)})),
        ({"Regions": {"1": {"Nodes": []}}}, DERPMap({1: DERPRegion(0)})),
        (
            {"HomeParams": {"RegionScore": {"1": None}}},
            DERPMap(None, DERPHomeParams({1: 0.0})),
        ),
        ({"Regions": {"+1": None, "-2": None, "03": None}}, None),
    ],
)
def test_missing_and_null_are_zero(value: object, derp_map: DERPMap | None) -> None:
    if derp_map is None:
        derp_map = DERPMap({1: None, -2: None, 3: None})
    assert decode(value) == derp_map


@pytest.mark.parametrize(
    "name", ["omitDefaultRegions", "OmitDefaultRegions", "OMITDEFAULTREGIONS"]
)
def test_names_match_whatever_their_case(name: str) -> None:
    assert decode({name: True, "regions": {}}) == DERPMap({}, omit_default_regions=True)
    assert encode(decode({name: True}))["omitDefaultRegions"] is True


def test_case_of_names_in_regions_and_nodes() -> None:
    value = {"REGIONS": {"1": {"regionid": 1, "NODES": [{"hostname": "h", "NAME": 0}]}}}
    value["REGIONS"]["1"]["NODES"][0]["NAME"] = "n"  # type: ignore[index]
    assert decode(value) == DERPMap({1: DERPRegion(1, nodes=(DERPNode("n", 0, "h"),))})


def test_of_two_spellings_the_last_counts_unless_null() -> None:
    text = b'{"Regions":{"1":{"RegionID":1,"regionid":2,"REGIONID":null}}}'
    assert decode_derp_map(text).region(1).region_id == 2


def test_unknown_fields_are_dropped() -> None:
    value = json.loads(json.dumps(FULL))
    value["Extra"] = value["HomeParams"]["Extra"] = [1, {"x": None}]
    value["Regions"]["900"]["Extra"] = "x"
    value["Regions"]["900"]["Nodes"][0]["Extra"] = 1.5
    assert encode(decode(value)) == FULL


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "the DERP map is no JSON object"),
        (None, "the DERP map is no JSON object"),
        ({"omitDefaultRegions": "yes"}, "the DERP map: omitDefaultRegions is no bool"),
        ({"HomeParams": 1}, "HomeParams is no JSON object"),
        ({"HomeParams": {"RegionScore": []}}, "RegionScore is no JSON object"),
        (
            {"HomeParams": {"RegionScore": {"5": "low"}}},
            "region 5: RegionScore is no float",
        ),
        ({"Regions": []}, "Regions is no JSON object"),
        ({"Regions": {"one": {}}}, "Regions has a region that is no number: 'one'"),
        ({"Regions": {"1.0": {}}}, "Regions has a region that is no number: '1.0'"),
        ({"Regions": {" 1": {}}}, "Regions has a region that is no number: ' 1'"),
        ({"Regions": {str(1 << 63): {}}}, "no number"),
        ({"Regions": {"9" * 500: {}}}, "no number"),
        ({"Regions": {"5": 7}}, "region 5 is no JSON object"),
        ({"Regions": {"5": {"RegionCode": 5}}}, "region 5: RegionCode is no str"),
        ({"Regions": {"5": {"RegionID": True}}}, "region 5: RegionID is no int"),
        ({"Regions": {"5": {"RegionID": 1.0}}}, "region 5: RegionID is no int"),
        ({"Regions": {"5": {"RegionID": 1 << 63}}}, "region 5: RegionID is out of"),
        ({"Regions": {"5": {"Latitude": "N"}}}, "region 5: Latitude is no float"),
        ({"Regions": {"5": {"Latitude": True}}}, "region 5: Latitude is no float"),
        ({"Regions": {"5": {"Latitude": 10**400}}}, "region 5: Latitude is out of"),
        ({"Regions": {"5": {"Avoid": 1}}}, "region 5: Avoid is no bool"),
        ({"Regions": {"5": {"Nodes": {}}}}, "region 5: Nodes is no list"),
        ({"Regions": {"5": {"Nodes": [None]}}}, "region 5, node 0 is no JSON object"),
        (with_node(STUNPort="3478"), "region 1, node 0: STUNPort is no int"),
    ],
)
def test_wrong_types_are_named(value: object, message: str) -> None:
    with pytest.raises(DERPMapError, match=message):
        decode(value)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b'{"Regions":{}} x', b'{"a":"\xff"}', b"[" * 100_000, b"{'a':1}"],
)
def test_not_json(text: bytes) -> None:
    with pytest.raises(DERPMapError, match="is not JSON"):
        decode_derp_map(text)


@pytest.mark.parametrize("score", [float("inf"), float("nan")])
def test_numbers_that_json_cannot_express(score: float) -> None:
    with pytest.raises(LocalProtocolError, match="cannot hold"):
        encode_derp_map(DERPMap(home_params=DERPHomeParams({1: score})))


def test_text_that_json_cannot_express() -> None:
    with pytest.raises(LocalProtocolError, match="no Unicode"):
        encode_derp_map(DERPMap({1: DERPRegion(1, "\ud800")}))


# -- looking up, and checking -----------------------------------------------


def test_region() -> None:
    assert FULL_MAP.region(900).region_code == "own"
    for missing in (1, 2):
        with pytest.raises(DERPMapError, match=f"no region {missing}"):
            FULL_MAP.region(missing)
    with pytest.raises(DERPMapError, match="no region 1"):
        DERPMap(None).region(1)


def test_usable_maps() -> None:
    FULL_MAP.validate()
    DERPMap(None).validate()
    decode({"Regions": {"1": {"RegionID": 1}}}).validate()
    decode(with_node(STUNPort=65535, DERPPort=65535, CertName="other")).validate()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"Regions": {"0": {"RegionID": 0}}}, "region 0: RegionID is not 1 to"),
        ({"Regions": {"-1": {"RegionID": -1}}}, "region -1: RegionID is not 1 to"),
        (
            {"Regions": {str(MAX_REGION_ID + 1): {"RegionID": MAX_REGION_ID + 1}}},
            "RegionID is not 1 to",
        ),
        ({"Regions": {"2": {"RegionID": 3}}}, "region 2: RegionID is 3"),
        ({"Regions": {"2": {}}}, "region 2: RegionID is 0"),
        (with_node(RegionID=0), "region 1, node a: RegionID is 0, not 1"),
        (with_node(Name=""), "region 1, node 0: Name is empty"),
        (with_node(HostName=""), "region 1, node a: HostName is empty"),
        (with_node(STUNPort=-2), "region 1, node a: STUNPort is -2"),
        (with_node(STUNPort=65536), "region 1, node a: STUNPort is 65536"),
        (with_node(DERPPort=-1), "region 1, node a: DERPPort is -1"),
        (with_node(DERPPort=65536), "region 1, node a: DERPPort is 65536"),
        (
            with_node(CertName="sha256-raw:" + "0F" * 32),
            "region 1, node a: CertName has no 64",
        ),
        (with_node(CertName="sha256-raw:00"), "region 1, node a: CertName has no 64"),
    ],
)
def test_unusable_maps(value: object, message: str) -> None:
    with pytest.raises(DERPMapError, match=message):
        decode(value).validate()


def test_names_are_unique_among_all_regions() -> None:
    regions = {i: DERPRegion(i, nodes=(DERPNode("x", i, "h"),)) for i in (1, 2)}
    with pytest.raises(DERPMapError, match="region 2, node x: Name is taken"):
        DERPMap(regions).validate()


# -- any map ----------------------------------------------------------------

TEXT = st.text("aZ09-:<&'\"\\\n\0é\u2028\U0001f4ac", max_size=8)
INT = st.integers(-(1 << 63), (1 << 63) - 1)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
NODES = st.builds(
    DERPNode, TEXT, INT, TEXT, TEXT, TEXT, TEXT, INT, st.booleans(), INT,
    st.booleans(), TEXT, st.booleans(), st.booleans(),
)  # fmt: skip
REGIONS = st.builds(
    DERPRegion, INT, TEXT, TEXT, FLOAT, FLOAT, st.booleans(), st.booleans(),
    st.none() | st.lists(NODES, max_size=2).map(tuple), st.booleans(),
)  # fmt: skip
MAPS = st.builds(
    DERPMap,
    st.none() | st.dictionaries(INT, st.none() | REGIONS, max_size=3),
    st.none()
    | st.builds(DERPHomeParams, st.none() | st.dictionaries(INT, FLOAT, max_size=3)),
    st.booleans(),
)


@given(derp_map=MAPS)
def test_maps_come_back(derp_map: DERPMap) -> None:
    assert decode_derp_map(encode_derp_map(derp_map)) == derp_map


@given(
    text=st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.none() | st.booleans() | INT | FLOAT | TEXT,
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from(
                        ["Regions", "1", "Nodes", "regionid", "HomeParams"]
                    ),
                    inner,
                    max_size=3,
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_text_decodes_or_raises_derp_map_error(text: bytes) -> None:
    try:
        derp_map = decode_derp_map(text)
    except DERPMapError:
        return
    assert decode_derp_map(encode_derp_map(derp_map)) == derp_map
