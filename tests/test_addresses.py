"""Addresses and node ids of UUIDs."""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from pathlib import Path
from uuid import UUID

from hypothesis import given, strategies as st

from tailnet.addresses import (
    CODER_PREFIX,
    LEGACY_AGENT_ADDRESS,
    TAILSCALE_PREFIX,
    coder_address,
    node_id,
    tailscale_address,
)

# Computed by Coder's own code.
VECTORS = json.loads((Path(__file__).parent / "data/coder/vectors.json").read_text())
AGENT = UUID(VECTORS["uuid"])


def test_vectors() -> None:
    assert str(tailscale_address(AGENT)) == VECTORS["address.tailscale"]
    assert str(coder_address(AGENT)) == VECTORS["address.coder"]
    assert node_id(AGENT) == 7043733503022406154


def test_node_id_fits() -> None:
    assert node_id(UUID(int=0x8000_0000_0000_0000)) == 2**63 - 1
    assert node_id(UUID(int=0x7FFF_FFFF_FFFF_FFFF)) == 2**63 - 1
    assert node_id(UUID(int=0xFFFF_FFFF_FFFF_FFFE)) == 2


def test_legacy_address_is_under_the_prefix() -> None:
    assert LEGACY_AGENT_ADDRESS in TAILSCALE_PREFIX
    assert (
        IPv6Address("fd7a:115c:a1e0:49d6:b259:b7ac:b1b2:48f4") == LEGACY_AGENT_ADDRESS
    )


@given(st.uuids())
def test_any_uuid(peer_id: UUID) -> None:
    assert tailscale_address(peer_id) in TAILSCALE_PREFIX
    assert coder_address(peer_id) in CODER_PREFIX
    assert tailscale_address(peer_id).packed[6:] == peer_id.bytes[6:]
    assert coder_address(peer_id).packed[6:] == peer_id.bytes[6:]
    assert 0 <= node_id(peer_id) < 2**63
