"""The DERP map that a server gives out, from its settings: no I/O.

Rules and names are those of Coder's server (``tailnet/derpmap.go``,
NewDERPMap and STUNRegions; ``cli/server.go`` for the embedded region):

- a custom map, if there is one, is the base;
- the embedded relay is a region of its own, reached by the access URL;
- each outside STUN server is a region of its own, with an id after the
  embedded one that the custom map does not use;
- when direct connections are blocked there is no STUN anywhere.

API: :func:`build_derp_map`. What it returns passes
:meth:`tailnet.derp.derpmap.DERPMap.validate` and has a relay in it.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from relay.addresses import split_host_port
from tailnet.derp.derpmap import MAX_REGION_ID, DERPMap, DERPNode, DERPRegion
from tailnet.errors import ConfigError, DERPMapError

__all__ = (
    "DISABLE",
    "AccessUrl",
    "MapOptions",
    "build_derp_map",
    "is_same_for_clients",
    "parse_stun_servers",
)

# The word that stands for "none" in lists and addresses.
DISABLE: Final = "disable"

# tailcfg.DERPNode.STUNPort: there is no STUN.
NO_STUN: Final = -1

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class AccessUrl:
    """Where agents and clients reach the server.

    Attributes:
        scheme: ``http`` or ``https``.
        host: A name or an IP address, without brackets.
        port: Never 0.
    """

    scheme: str
    host: str
    port: int

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse a URL.

        Raises:
            ConfigError: It cannot be an access URL; the message is the reason
                alone.
        """
        if not text.isprintable() or " " in text:
            raise ConfigError("no URL: there is white space in it")
        try:
            parts = urllib.parse.urlsplit(text)
            port = parts.port
            host = parts.hostname
        except ValueError as exc:
            raise ConfigError(f"no URL: {exc}") from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise ConfigError("it has to begin with http:// or https://")
        if not host:
            raise ConfigError("it has no host")
        if not host.isascii():
            raise ConfigError("its host is no name and no IP address")
        if port == 0:
            raise ConfigError("its port is 0")
        if parts.username is not None:
            raise ConfigError("it has a user name")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            # The receivers of a map replace host and port of a relay and then
            # ask for /derp of it; there is no place for a path.
            raise ConfigError("nothing may follow its host and port")
        return cls(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme])

    @property
    def is_plain_http(self) -> bool:
        return self.scheme == "http"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOptions:
    """What the settings say about the map.

    Attributes:
        serve_embedded: Whether this server's relay is in the map.
        region_id: Of the embedded region. The STUN regions follow it, even if
            it is not there.
        region_code: Its short name.
        region_name: Its long name.
        stun_servers: Outside STUN servers: host and port.
        block_direct: Take all STUN out.
        config_path: File with a custom map, or empty.
        config_url: URL of a custom map, or empty. Not both.
    """

    serve_embedded: bool = True
    region_id: int = 999
    region_code: str = "coder"
    region_name: str = "Coder Embedded Relay"
    stun_servers: tuple[tuple[str, int], ...] = ()
    block_direct: bool = False
    config_path: str = ""
    config_url: str = ""


def parse_stun_servers(entries: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Read a list of ``host:port``.

    Args:
        entries: One server each. If one is ``disable``, there are none.

    Raises:
        ConfigError: An entry is no host and port; the message names it.
    """
    if DISABLE in entries:
        return ()
    servers = []
    for entry in entries:
        try:
            host, port_text = split_host_port(entry)
        except ConfigError as exc:
            raise ConfigError(f"{entry!r}: {exc}") from None
        if not host:
            raise ConfigError(f"{entry!r}: there is no host")
        if not (port_text.isascii() and port_text.isdigit()) or len(port_text) > 5:
            raise ConfigError(f"{entry!r}: the port is no number")
        if not 0 < (port := int(port_text)) < 1 << 16:
            raise ConfigError(f"{entry!r}: the port is not within 1 and 65535")
        servers.append((host, port))
    return tuple(servers)


def build_derp_map(
    options: MapOptions,
    *,
    access_url: AccessUrl,
    stun_port: int | None = None,
    custom: DERPMap | None = None,
) -> DERPMap:
    """Put the map together.

    Args:
        options: What the settings say.
        access_url: Where the embedded relay is reached.
        stun_port: Where this server answers STUN on the host of the access
            URL, or None.
        custom: The map to begin with.

    Raises:
        DERPMapError: It would not be usable; the message names the region and
            field.
    """
    regions = {} if custom is None else _custom_regions(custom)
    if options.serve_embedded:
        if options.region_id in regions:
            raise DERPMapError(
                f"region {options.region_id}: RegionID is that of the embedded relay; "
                "set --derp-server-region-id to another"
            )
        regions[options.region_id] = _embedded_region(options, access_url, stun_port)
    if options.block_direct:
        regions = {key: _without_stun(region) for key, region in regions.items()}
    else:
        _add_stun_regions(regions, options)
    built = replace(custom or DERPMap(), regions=regions)
    built.validate()
    if not any(
        not node.stun_only for region in regions.values() for node in region.nodes or ()
    ):
        raise DERPMapError(
            "the DERP map has no DERP node: keep --derp-server-enable, or give a map "
            "with a relay by --derp-config-url or --derp-config-path"
        )
    return built


def _custom_regions(custom: DERPMap) -> dict[int, DERPRegion]:
    """The regions of a custom map, all of them there.

    Upstream a null region takes away a default one; here there are none.
    """
    if custom.regions is None:
        # Also what an error message in JSON looks like.
        raise DERPMapError("the DERP map has no Regions")
    regions = {}
    for region_id, region in custom.regions.items():
        if region is None:
            raise DERPMapError(f"region {region_id}: it is null")
        regions[region_id] = region
    return regions


def _embedded_region(
    options: MapOptions, access_url: AccessUrl, stun_port: int | None
) -> DERPRegion:
    region_id = options.region_id
    node = DERPNode(
        name=f"{region_id}b",
        region_id=region_id,
        host_name=access_url.host,
        derp_port=access_url.port,
        stun_port=NO_STUN if stun_port is None else stun_port,
        force_http=access_url.is_plain_http,
    )
    return DERPRegion(
        region_id=region_id,
        region_code=options.region_code,
        region_name=options.region_name,
        nodes=(node,),
        embedded_relay=True,
    )


def _without_stun(region: DERPRegion) -> DERPRegion:
    """A region whose relays are for packets alone.

    One that had STUN servers only stays, empty, as Coder leaves it.
    """
    nodes = tuple(
        replace(node, stun_port=NO_STUN)
        for node in region.nodes or ()
        if not node.stun_only
    )
    return replace(region, nodes=nodes)


def _add_stun_regions(regions: dict[int, DERPRegion], options: MapOptions) -> None:
    region_id = options.region_id + 1
    for host, port in options.stun_servers:
        while region_id in regions:
            region_id += 1
        if region_id > MAX_REGION_ID:
            raise DERPMapError(
                f"region {options.region_id}: RegionID leaves none for STUN servers"
            )
        node = DERPNode(
            name=f"{region_id}stun0",
            region_id=region_id,
            host_name=host,
            stun_only=True,
            stun_port=port,
        )
        regions[region_id] = DERPRegion(
            region_id=region_id,
            region_code=f"coder_stun_{region_id}",
            region_name=f"Coder STUN {region_id}",
            nodes=(node,),
        )


def is_same_for_clients(one: DERPMap, other: DERPMap) -> bool:
    """Whether nobody needs to be told that one map became the other.

    Not looked at are HomeParams and CanPort80, which peers find out by
    themselves (Coder ``tailnet/derpmap.go``, CompareDERPMaps).
    """
    return one is other or _compared(one) == _compared(other)


def _compared(derp_map: DERPMap) -> DERPMap:
    regions: Mapping[int, DERPRegion | None] | None = derp_map.regions
    if regions is not None:
        regions = {
            key: None if region is None else _compared_region(region)
            for key, region in regions.items()
        }
    return replace(derp_map, regions=regions, home_params=None)


def _compared_region(region: DERPRegion) -> DERPRegion:
    nodes = region.nodes or ()  # Go's nil slice and an empty one are alike
    return replace(
        region, nodes=tuple(replace(node, can_port_80=False) for node in nodes)
    )
