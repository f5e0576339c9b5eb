"""The DERP map: which regions there are, and the relays in them.

Format: JSON, tailscale ``tailcfg/derpmap.go``, and the two fields that Coder's
fork adds (``EmbeddedRelay``, ``ForceHTTP``). It is read as Go reads it: names
match whatever their case, unknown ones are dropped, null leaves a field as it
was. It is written as Go writes it, field by field.

A map that is read need not be usable; :meth:`DERPMap.validate` says whether
it is. So a relay can hand on what a client would not take.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from tailnet.errors import DERPMapError, LocalProtocolError

__all__ = (
    "MAX_REGION_ID",
    "PIN_PREFIX",
    "DERPHomeParams",
    "DERPMap",
    "DERPNode",
    "DERPRegion",
    "decode_derp_map",
    "encode_derp_map",
)

# derpmap.go: ids "fit in a JavaScript number".
MAX_REGION_ID: Final = (1 << 53) - 1

# derpmap.go CertName: the SHA-256 of the one certificate, in lower-case hex.
PIN_PREFIX: Final = "sha256-raw:"
_PIN: Final = re.compile(re.escape(PIN_PREFIX) + "[0-9a-f]{64}")

# strconv.ParseInt, for the keys of Regions and RegionScore.
_DECIMAL: Final = re.compile(r"[+-]?[0-9]{1,400}")

_INT64: Final = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class DERPNode:
    """One relay, or one STUN server.

    Attributes:
        name: Unique among all regions, like ``900a``.
        region_id: Of the region it is in.
        host_name: DNS name or IP address; SNI and ``Host``.
        cert_name: Name to expect in the certificate if not ``host_name``, or
            a pin: PIN_PREFIX and 64 hex digits.
        ipv4: An address to use in place of DNS. Empty: ask DNS; anything
            that is no address, like ``none``: do not use IPv4.
        ipv6: Likewise.
        stun_port: 0 means 3478, -1 that there is no STUN.
        stun_only: There is no relay.
        derp_port: 0 means 443.
        insecure_for_tests: Do not verify the certificate.
        stun_test_ip: Where tests send STUN instead.
        can_port_80: Port 80 answers too, for captive portal checks.
        force_http: Coder: speak plain HTTP.
    """

    name: str
    region_id: int
    host_name: str
    cert_name: str = ""
    ipv4: str = ""
    ipv6: str = ""
    stun_port: int = 0
    stun_only: bool = False
    derp_port: int = 0
    insecure_for_tests: bool = False
    stun_test_ip: str = ""
    can_port_80: bool = False
    force_http: bool = False


@dataclass(frozen=True, slots=True)
class DERPRegion:
    """A set of relays that forward to each other.

    Attributes:
        region_id: 1 to MAX_REGION_ID; 900 to 999 are for self-hosters.
        region_code: Short name, like ``nyc``.
        region_name: Long name, like ``New York City``.
        latitude: Degrees; 0 if not told.
        longitude: Degrees; 0 if not told.
        avoid: Deprecated.
        no_measure_no_home: Send no probes there, and never make it home.
        nodes: Best first. None is Go's nil slice, ``null`` on the wire.
        embedded_relay: Coder: the relay is part of Coder's server.
    """

    region_id: int
    region_code: str = ""
    region_name: str = ""
    latitude: float = 0.0
    longitude: float = 0.0
    avoid: bool = False
    no_measure_no_home: bool = False
    nodes: tuple[DERPNode, ...] | None = ()
    embedded_relay: bool = False


@dataclass(frozen=True, slots=True)
class DERPHomeParams:
    """How a node should choose its home.

    Attributes:
        region_score: Factors for measured latencies by region id; below 1
            favours a region. In an update None means "as before" and an empty
            mapping "all 1 again". Go's encoder would drop the empty one; ours
            keeps it, for its reader makes that difference.
    """

    region_score: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class DERPMap:
    """All regions.

    Attributes:
        regions: By region id. A region of None removes a default one (in a
            policy). None for all of them is Go's nil map: in an update "as
            before".
        home_params: None means "as before".
        omit_default_regions: Use none but these regions.
    """

    regions: Mapping[int, DERPRegion | None] | None = field(default_factory=dict)
    home_params: DERPHomeParams | None = None
    omit_default_regions: bool = False

    def region(self, region_id: int) -> DERPRegion:
        """A region by its id.

        Raises:
            DERPMapError: There is none, or it is null.
        """
        found = (self.regions or {}).get(region_id)
        if found is None:
            raise DERPMapError(f"there is no region {region_id}")
        return found

    def validate(self) -> None:
        """Check that a client can use every region.

        Raises:
            DERPMapError: For the first fault, with its region and field.
        """
        names: dict[str, int] = {}
        for region_id, region in (self.regions or {}).items():
            if region is not None:
                _validate_region(region_id, region, names)


def _validate_region(region_id: int, region: DERPRegion, names: dict[str, int]) -> None:
    where = f"region {region_id}"
    if not 0 < region_id <= MAX_REGION_ID:
        raise DERPMapError(f"{where}: RegionID is not 1 to {MAX_REGION_ID}")
    if region.region_id != region_id:
        raise DERPMapError(f"{where}: RegionID is {region.region_id}")
    for index, node in enumerate(region.nodes or ()):
        where = f"region {region_id}, node {node.name or index}"
        if not node.name:
            raise DERPMapError(f"{where}: Name is empty")
        if node.name in names:
            # netcheck.go finds nodes by their names.
            raise DERPMapError(
                f"{where}: Name is taken by a node of region {names[node.name]}"
            )
        names[node.name] = region_id
        _validate_node(where, region_id, node)


def _validate_node(where: str, region_id: int, node: DERPNode) -> None:
    # Without it netcheck does not measure the node: tailscale#9526.
    if node.region_id != region_id:
        raise DERPMapError(f"{where}: RegionID is {node.region_id}, not {region_id}")
    if not node.host_name:
        raise DERPMapError(f"{where}: HostName is empty")
    if node.cert_name.startswith(PIN_PREFIX) and not _PIN.fullmatch(node.cert_name):
        raise DERPMapError(
            f"{where}: CertName has no 64 lower-case hex digits behind {PIN_PREFIX}"
        )
    if not -1 <= node.stun_port < 1 << 16:
        raise DERPMapError(f"{where}: STUNPort is {node.stun_port}")
    if not 0 <= node.derp_port < 1 << 16:
        raise DERPMapError(f"{where}: DERPPort is {node.derp_port}")


# -- JSON -------------------------------------------------------------------


class _Field(NamedTuple):
    """A plain field: its two names, its type, and Go's omitempty."""

    json: str
    attribute: str
    kind: type[object]  # str, int, bool or float
    omit_empty: bool = True


# In the order in which Go writes them.
_NODE_FIELDS: Final = (
    _Field("Name", "name", str, omit_empty=False),
    _Field("RegionID", "region_id", int, omit_empty=False),
    _Field("HostName", "host_name", str, omit_empty=False),
    _Field("CertName", "cert_name", str),
    _Field("IPv4", "ipv4", str),
    _Field("IPv6", "ipv6", str),
    _Field("STUNPort", "stun_port", int),
    _Field("STUNOnly", "stun_only", bool),
    _Field("DERPPort", "derp_port", int),
    _Field("InsecureForTests", "insecure_for_tests", bool),
    _Field("ForceHTTP", "force_http", bool),
    _Field("STUNTestIP", "stun_test_ip", str),
    _Field("CanPort80", "can_port_80", bool),
)
_REGION_FIELDS: Final = (
    _Field("EmbeddedRelay", "embedded_relay", bool, omit_empty=False),
    _Field("RegionID", "region_id", int, omit_empty=False),
    _Field("RegionCode", "region_code", str, omit_empty=False),
    _Field("RegionName", "region_name", str, omit_empty=False),
    _Field("Latitude", "latitude", float),
    _Field("Longitude", "longitude", float),
    _Field("Avoid", "avoid", bool),
    _Field("NoMeasureNoHome", "no_measure_no_home", bool),
)
# Lower-case o: derpmap.go tags this one by hand.
_MAP_FIELDS: Final = (_Field("omitDefaultRegions", "omit_default_regions", bool),)


def encode_derp_map(derp_map: DERPMap) -> bytes:
    """Write a map as JSON, like Go with Coder's fields.

    Raises:
        LocalProtocolError: A number or text that JSON cannot express.
    """
    fields: dict[str, object] = {}
    if derp_map.home_params is not None:
        scores = derp_map.home_params.region_score
        fields["HomeParams"] = (
            {}
            if scores is None
            else {"RegionScore": {k: _number(v) for k, v in _by_key(scores)}}
        )
    fields["Regions"] = (
        None
        if derp_map.regions is None
        else {
            key: None if region is None else _encode_region(region)
            for key, region in _by_key(derp_map.regions)
        }
    )
    fields |= _encode_fields(derp_map, _MAP_FIELDS)
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError as exc:
        raise LocalProtocolError("a text in a DERP map is no Unicode") from exc


def _by_key(mapping: Mapping[int, Any]) -> list[tuple[str, Any]]:
    """Go sorts the keys of a map as text."""
    return sorted((str(key), value) for key, value in mapping.items())


def _encode_region(region: DERPRegion) -> dict[str, object]:
    nodes = (
        None
        if region.nodes is None
        else [_encode_fields(node, _NODE_FIELDS) for node in region.nodes]
    )
    return {**_encode_fields(region, _REGION_FIELDS), "Nodes": nodes}


def _encode_fields(value: object, fields: Sequence[_Field]) -> dict[str, object]:
    encoded = {}
    for spec in fields:
        item = getattr(value, spec.attribute)
        if item or not spec.omit_empty:
            encoded[spec.json] = _number(item) if spec.kind is float else item
    return encoded


def _number(value: float) -> float | int:
    """Go writes 40, not 40.0."""
    if not math.isfinite(value):
        raise LocalProtocolError(f"a DERP map cannot hold {value}")
    whole = value == int(value) and abs(value) <= MAX_REGION_ID
    return int(value) if whole else value


def decode_derp_map(text: bytes) -> DERPMap:
    """Read a map from JSON.

    Args:
        text: UTF-8.

    Raises:
        DERPMapError: Not JSON, or a field of the wrong type; the message
            names its region.
    """
    try:
        parsed = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise DERPMapError(f"the DERP map is not JSON: {exc}") from exc
    fields = _lowered(parsed, "the DERP map")
    raw_regions = fields.get("regions")
    raw_params = fields.get("homeparams")
    return DERPMap(
        regions=(
            None
            if raw_regions is None
            else {
                region_id: _decode_region(region_id, raw)
                for region_id, raw in _by_number(raw_regions, "Regions").items()
            }
        ),
        home_params=None if raw_params is None else _decode_home_params(raw_params),
        **_decode_fields(fields, _MAP_FIELDS, "the DERP map"),
    )


def _decode_home_params(raw: object) -> DERPHomeParams:
    scores = _lowered(raw, "HomeParams").get("regionscore")
    if scores is None:
        return DERPHomeParams()
    return DERPHomeParams(
        {
            region_id: _decode_plain(
                0 if value is None else value, float, f"region {region_id}: RegionScore"
            )
            for region_id, value in _by_number(scores, "RegionScore").items()
        }
    )


def _decode_region(region_id: int, raw: object) -> DERPRegion | None:
    if raw is None:
        return None
    where = f"region {region_id}"
    fields = _lowered(raw, where)
    raw_nodes = fields.get("nodes")
    nodes: tuple[DERPNode, ...] | None = None
    if raw_nodes is not None:
        if not isinstance(raw_nodes, list):
            raise DERPMapError(f"{where}: Nodes is no list")
        nodes = tuple(
            _decode_node(raw_node, f"{where}, node {index}")
            for index, raw_node in enumerate(raw_nodes)
        )
    plain = _decode_fields(fields, _REGION_FIELDS, where)
    return DERPRegion(**{"region_id": 0, **plain}, nodes=nodes)


def _decode_node(raw: object, where: str) -> DERPNode:
    zero = {"name": "", "region_id": 0, "host_name": ""}
    plain = _decode_fields(_lowered(raw, where), _NODE_FIELDS, where)
    return DERPNode(**{**zero, **plain})


def _lowered(raw: object, where: str) -> dict[str, Any]:
    """The fields of an object, under the names that Go would match."""
    if not isinstance(raw, dict):
        raise DERPMapError(f"{where} is no JSON object")
    lowered: dict[str, Any] = {}
    for name, value in raw.items():
        # Of several spellings the last one counts, but null changes nothing.
        if value is not None:
            lowered[name.lower()] = value
    return lowered


def _by_number(raw: object, what: str) -> dict[int, Any]:
    """The items of an object whose names are region ids."""
    if not isinstance(raw, dict):
        raise DERPMapError(f"{what} is no JSON object")
    numbered = {}
    for key, value in raw.items():
        if not _DECIMAL.fullmatch(key) or (number := int(key)) not in _INT64:
            raise DERPMapError(f"{what} has a region that is no number: {key[:20]!r}")
        numbered[number] = value
    return numbered


def _decode_fields(
    fields: Mapping[str, Any], specs: Sequence[_Field], where: str
) -> dict[str, Any]:
    """The plain fields that are there, by attribute."""
    return {
        spec.attribute: _decode_plain(value, spec.kind, f"{where}: {spec.json}")
        for spec in specs
        if (value := fields.get(spec.json.lower())) is not None
    }


def _decode_plain(value: object, kind: type, what: str) -> Any:
    if kind is float and type(value) in (int, float):
        try:
            return float(value)  # type: ignore[arg-type]
        except OverflowError:
            raise DERPMapError(f"{what} is out of range") from None
    if type(value) is not kind:
        raise DERPMapError(f"{what} is no {kind.__name__}")
    if isinstance(value, int) and value not in _INT64:
        raise DERPMapError(f"{what} is out of range")
    return value
