"""Overlay addresses: how a peer's UUID becomes its addresses and node id.

Coder ``tailnet/tailnet.go``: a 48-bit prefix, then the last ten bytes of the
UUID. Always IPv6, always /128.
"""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from typing import Final
from uuid import UUID

__all__ = (
    "CODER_PREFIX",
    "LEGACY_AGENT_ADDRESS",
    "TAILSCALE_PREFIX",
    "coder_address",
    "node_id",
    "tailscale_address",
)

# What the CLI and servers dial; Tailscale's service range.
TAILSCALE_PREFIX: Final = IPv6Network("fd7a:115c:a1e0::/48")

# What Coder Desktop's names resolve to.
CODER_PREFIX: Final = IPv6Network("fd60:627a:a42b::/48")

# Every agent's address before addresses came from UUIDs. Still permitted.
LEGACY_AGENT_ADDRESS: Final = IPv6Address("fd7a:115c:a1e0:49d6:b259:b7ac:b1b2:48f4")

_PREFIX_LEN: Final = 6  # bytes of a /48
_MAX_INT64: Final = (1 << 63) - 1


def tailscale_address(peer_id: UUID) -> IPv6Address:
    """The address of a peer under TAILSCALE_PREFIX."""
    return _address(TAILSCALE_PREFIX, peer_id)


def coder_address(peer_id: UUID) -> IPv6Address:
    """The address of a peer under CODER_PREFIX."""
    return _address(CODER_PREFIX, peer_id)


def _address(prefix: IPv6Network, peer_id: UUID) -> IPv6Address:
    head = prefix.network_address.packed[:_PREFIX_LEN]
    return IPv6Address(head + peer_id.bytes[_PREFIX_LEN:])


def node_id(peer_id: UUID) -> int:
    """The node id of a peer with that UUID: 0 to 2**63 - 1.

    Coder's conn.go: the last eight bytes as a signed number, without its sign.
    """
    number = int.from_bytes(peer_id.bytes[8:], "big", signed=True)
    # -2**63 has no positive twin in 64 bits.
    return min(abs(number), _MAX_INT64)
