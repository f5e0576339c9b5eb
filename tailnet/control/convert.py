"""Between the messages of the control protocol and the library's own types.

Conventions of this module: ``*_from_proto`` takes what a peer sent and raises
RemoteProtocolError alone; ``*_to_proto`` takes our own values and raises
LocalProtocolError if they cannot be put on the wire.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from tailnet.control.proto import tailnet_pb2
from tailnet.derp.derpmap import DERPHomeParams, DERPMap, DERPNode, DERPRegion
from tailnet.errors import KeyFormatError, LocalProtocolError, RemoteProtocolError
from tailnet.keys import DiscoPublic, NodePublic

__all__ = (
    "UUID_LEN",
    "derp_map_from_proto",
    "derp_map_to_proto",
    "disco_key_from_proto",
    "disco_key_to_proto",
    "node_key_from_proto",
    "node_key_to_proto",
    "uuid_from_proto",
)

UUID_LEN: Final = 16

# Go's key.NodePublic.MarshalBinary: a kind, then the raw key.
_NODE_KEY_PREFIX: Final = b"np"

# The fields of a relay that both forms have, under the same names.
_NODE_FIELDS: Final = (
    "name", "region_id", "host_name", "cert_name", "ipv4", "ipv6", "stun_port",
    "stun_only", "derp_port", "insecure_for_tests", "force_http", "stun_test_ip",
    "can_port_80",
)  # fmt: skip


# -- keys and ids -----------------------------------------------------------


def uuid_from_proto(raw: bytes) -> UUID:
    """A UUID from its 16 bytes; back again it is ``peer_id.bytes``.

    Raises:
        RemoteProtocolError: Another length; Go's text (google/uuid FromBytes).
    """
    if len(raw) != UUID_LEN:
        raise RemoteProtocolError(f"invalid UUID (got {len(raw)} bytes)")
    return UUID(bytes=raw)


def node_key_to_proto(key: NodePublic) -> bytes:
    """``Node.key``: 34 bytes."""
    return _NODE_KEY_PREFIX + bytes(key)


def node_key_from_proto(raw: bytes) -> NodePublic:
    """The key in ``Node.key``.

    Raises:
        RemoteProtocolError: Another prefix or length.
    """
    if not raw.startswith(_NODE_KEY_PREFIX):
        raise RemoteProtocolError("a node's key does not start with np")
    try:
        return NodePublic(raw[len(_NODE_KEY_PREFIX) :])
    except KeyFormatError as exc:
        raise RemoteProtocolError(str(exc)) from exc


def disco_key_to_proto(key: DiscoPublic) -> str:
    """``Node.disco``: the text form."""
    return str(key)


def disco_key_from_proto(text: str) -> DiscoPublic:
    """The key in ``Node.disco``.

    Raises:
        RemoteProtocolError: Not the text form of a disco key.
    """
    try:
        return DiscoPublic.from_text(text)
    except KeyFormatError as exc:
        raise RemoteProtocolError(str(exc)) from exc


# -- DERP maps --------------------------------------------------------------


def derp_map_to_proto(derp_map: DERPMap) -> tailnet_pb2.DERPMap:
    """A DERP map as a message.

    Null regions are left out, and so is what the message has no field for:
    positions, ``no_measure_no_home``, ``omit_default_regions``.

    Raises:
        LocalProtocolError: A number or text that the message cannot hold.
    """
    # HomeParams are there even if empty: Coder's converter (tailnet/convert.go
    # DERPMapFromProto) dereferences them, and its agent dies if they are not.
    message = tailnet_pb2.DERPMap(home_params={})
    try:
        if derp_map.home_params is not None:
            scores = derp_map.home_params.region_score
            message.home_params.region_score.update(scores or {})
        for region_id, region in sorted((derp_map.regions or {}).items()):
            if region is not None:
                message.regions[region_id].CopyFrom(_region_to_proto(region))
    except (ValueError, TypeError) as exc:
        raise LocalProtocolError(f"a DERP map cannot be a message: {exc}") from exc
    return message


def _region_to_proto(region: DERPRegion) -> tailnet_pb2.DERPMap.Region:
    return tailnet_pb2.DERPMap.Region(
        region_id=region.region_id,
        embedded_relay=region.embedded_relay,
        region_code=region.region_code,
        region_name=region.region_name,
        avoid=region.avoid,
        nodes=[
            tailnet_pb2.DERPMap.Region.Node(
                **{name: getattr(node, name) for name in _NODE_FIELDS}
            )
            for node in region.nodes or ()
        ],
    )


def derp_map_from_proto(message: tailnet_pb2.DERPMap) -> DERPMap:
    """A DERP map from its message, usable or not (:meth:`DERPMap.validate`).

    As Coder reads it, scores are never "as before": none means all 1. Absent
    HomeParams are taken for empty ones.
    """
    return DERPMap(
        regions={
            region_id: _region_from_proto(region)
            for region_id, region in sorted(message.regions.items())
        },
        home_params=DERPHomeParams(dict(message.home_params.region_score)),
    )


def _region_from_proto(region: tailnet_pb2.DERPMap.Region) -> DERPRegion:
    return DERPRegion(
        region_id=region.region_id,
        embedded_relay=region.embedded_relay,
        region_code=region.region_code,
        region_name=region.region_name,
        avoid=region.avoid,
        nodes=tuple(
            DERPNode(**{name: getattr(node, name) for name in _NODE_FIELDS})
            for node in region.nodes
        ),
    )
