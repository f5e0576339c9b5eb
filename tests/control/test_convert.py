"""DERP maps, keys and ids, to messages and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf import json_format
from hypothesis import given, strategies as st

from tailnet.control.convert import (
    derp_map_from_proto,
    derp_map_to_proto,
    disco_key_from_proto,
    disco_key_to_proto,
    node_key_from_proto,
    node_key_to_proto,
    uuid_from_proto,
)
from tailnet.control.proto import tailnet_pb2
from tailnet.derp.derpmap import DERPHomeParams, DERPMap, DERPNode, DERPRegion
from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tailnet.keys import DiscoPublic, NodePublic

DATA = Path(__file__).parents[1] / "data" / "coder"

# -- ids and keys -----------------------------------------------------------


def test_uuid() -> None:
    raw = bytes.fromhex("8c7d5f4e0b1a4c2d9e3fa1b2c3d4e5f6")
    assert uuid_from_proto(raw) == UUID("8c7d5f4e-0b1a-4c2d-9e3f-a1b2c3d4e5f6")
    assert uuid_from_proto(raw).bytes == raw


@pytest.mark.parametrize("length", [0, 15, 17])
def test_uuid_of_another_length(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"^invalid UUID \(got {length} "):
        uuid_from_proto(bytes(length))


def test_node_key() -> None:
    key = NodePublic(bytes(range(32)))
    assert node_key_to_proto(key) == b"np" + bytes(range(32))
    assert node_key_from_proto(node_key_to_proto(key)) == key


@pytest.mark.parametrize("raw", [b"", b"np", bytes(34), b"np" + bytes(31), bytes(32)])
def test_no_node_key(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        node_key_from_proto(raw)


def test_disco_key() -> None:
    key = DiscoPublic(bytes(range(32)))
    assert disco_key_to_proto(key) == "discokey:" + bytes(range(32)).hex()
    assert disco_key_from_proto(disco_key_to_proto(key)) == key


@pytest.mark.parametrize("text", ["", "discokey:", "nodekey:" + "00" * 32, "00" * 32])
def test_no_disco_key(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        disco_key_from_proto(text)


# -- DERP maps --------------------------------------------------------------


def recorded_map() -> dict[str, Any]:
    """The map that Coder's server sent, as JSON."""
    for line in (DATA / "direct.jsonl").read_text().splitlines():
        event = json.loads(line)
        answer = event["ev"] == "drpc" and event["dir"] == "s2c"
        if answer and event["rpc"].endswith("/StreamDERPMaps") and "json" in event:
            found = event["json"]
            assert isinstance(found, dict)
            return found
    raise AssertionError("no map in the recording")


def test_recorded_map() -> None:
    recorded = recorded_map()
    message = json_format.ParseDict(recorded, tailnet_pb2.DERPMap())
    derp_map = derp_map_from_proto(message)
    assert derp_map.region(999) == DERPRegion(
        region_id=999,
        region_code="coder",
        region_name="Coder Embedded Relay",
        embedded_relay=True,
        nodes=(
            DERPNode(
                name="999b",
                region_id=999,
                host_name="127.0.0.1",
                derp_port=13002,
                stun_port=-1,
                force_http=True,
            ),
        ),
    )
    assert derp_map_to_proto(derp_map) == message


def test_home_params_are_always_there() -> None:
    for params in (None, DERPHomeParams(), DERPHomeParams({})):
        message = derp_map_to_proto(DERPMap(home_params=params))
        assert message.SerializeToString() == bytes.fromhex("0a00")


def test_a_message_without_home_params() -> None:
    derp_map = derp_map_from_proto(tailnet_pb2.DERPMap())
    assert derp_map == DERPMap(home_params=DERPHomeParams({}))


def test_null_regions_and_nodes() -> None:
    derp_map = DERPMap({1: None, 2: DERPRegion(2, nodes=None)})
    message = derp_map_to_proto(derp_map)
    assert list(message.regions) == [2]
    assert derp_map_from_proto(message).region(2) == DERPRegion(2)
    assert not derp_map_to_proto(DERPMap(None)).regions


@pytest.mark.parametrize(
    "derp_map",
    [
        DERPMap({1 << 63: DERPRegion(1)}),
        DERPMap({1: DERPRegion(1 << 63)}),
        DERPMap({1: DERPRegion(1, nodes=(DERPNode("a", 1, "b", stun_port=1 << 31),))}),
        DERPMap({1: DERPRegion(1, region_name="\ud800")}),
        DERPMap(home_params=DERPHomeParams({1 << 63: 1.0})),
    ],
    ids=["key", "region id", "port", "text", "score"],
)
def test_what_a_message_cannot_hold(derp_map: DERPMap) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be a message"):
        derp_map_to_proto(derp_map)


INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)

NODES = st.builds(
    DERPNode,
    name=TEXT,
    region_id=INT64,
    host_name=TEXT,
    cert_name=TEXT,
    ipv4=TEXT,
    ipv6=TEXT,
    stun_port=INT32,
    stun_only=st.booleans(),
    derp_port=INT32,
    insecure_for_tests=st.booleans(),
    stun_test_ip=TEXT,
    can_port_80=st.booleans(),
    force_http=st.booleans(),
)
REGIONS = st.builds(
    DERPRegion,
    region_id=INT64,
    region_code=TEXT,
    region_name=TEXT,
    avoid=st.booleans(),
    nodes=st.lists(NODES, max_size=2).map(tuple),
    embedded_relay=st.booleans(),
)
MAPS = st.builds(
    DERPMap,
    regions=st.dictionaries(INT64, REGIONS, max_size=2),
    home_params=st.builds(
        DERPHomeParams,
        region_score=st.dictionaries(INT64, st.floats(allow_nan=False), max_size=2),
    ),
)


@given(MAPS)
def test_round_trip(derp_map: DERPMap) -> None:
    raw = derp_map_to_proto(derp_map).SerializeToString()
    assert derp_map_from_proto(tailnet_pb2.DERPMap.FromString(raw)) == derp_map


def test_every_field_of_a_node_is_carried() -> None:
    names = {field.name for field in tailnet_pb2.DERPMap.Region.Node.DESCRIPTOR.fields}
    assert names == {field.name for field in dataclasses.fields(DERPNode)}
