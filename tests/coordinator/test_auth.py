"""Who may ask for what, and the texts for who may not."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from tailnet.addresses import (
    LEGACY_AGENT_ADDRESS,
    coder_address,
    tailscale_address,
)
from tailnet.control.proto import tailnet_pb2
from tailnet.coordinator.auth import (
    AgentAuth,
    ClientAuth,
    SingleTailnetAuth,
    TunnelAuth,
    UserAuth,
)
from tailnet.errors import AuthorizationError

AGENT = UUID("8c7d5f4e-0b1a-4c2d-9e3f-a1b2c3d4e5f6")
OTHER = UUID("00000000-0000-0000-0000-000000000001")
OWN = f"{tailscale_address(AGENT)}/128"
CODER = f"{coder_address(AGENT)}/128"
LEGACY = f"{LEGACY_AGENT_ADDRESS}/128"
FOREIGN = f"{tailscale_address(OTHER)}/128"


async def may_connect(agent_id: UUID) -> bool:
    return agent_id == AGENT


KINDS: dict[str, TunnelAuth] = {
    "agent": AgentAuth(AGENT),
    "client": ClientAuth(AGENT),
    "user": UserAuth(may_connect),
    "single": SingleTailnetAuth(),
}


def node(*addresses: str, allowed_ips: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "update_self": {"node": {"addresses": addresses, "allowed_ips": allowed_ips}}
    }


def tunnel(raw_id: bytes) -> dict[str, Any]:
    return {"add_tunnel": {"id": raw_id}}


RFH = {"ready_for_handshake": [{"id": AGENT.bytes}]}
BAD_ID = "parse add tunnel id: invalid UUID (got 15 bytes)"
NO_RFH = "clients may not send ready_for_handshake"
NOT_FOUND = "workspace agent not found or you do not have permission"
WRONG_AGENT = f"invalid agent id, expected {AGENT}, got {OTHER}"
NOT_OWN = f"invalid node allowed IP, got {tailscale_address(OTHER)}"
NOT_ITS = f"invalid node address, got {tailscale_address(OTHER)}"

# What is asked, and the answer to each kind; None: it may.
TABLE: list[tuple[dict[str, Any], dict[str, str | None]]] = [
    ({}, dict.fromkeys(KINDS)),
    (node(OWN, CODER, LEGACY, allowed_ips=(OWN, CODER, LEGACY)), dict.fromkeys(KINDS)),
    (node(FOREIGN), dict.fromkeys(KINDS) | {"agent": NOT_ITS}),
    (node(OWN, FOREIGN), dict.fromkeys(KINDS) | {"agent": NOT_ITS}),
    (
        node(OWN, allowed_ips=(FOREIGN,)),
        {"agent": NOT_ITS, "client": NOT_OWN, "user": NOT_OWN, "single": None},
    ),
    (node(FOREIGN, allowed_ips=(FOREIGN,)), dict.fromkeys(KINDS) | {"agent": NOT_ITS}),
    (
        node(OWN, allowed_ips=("::/0",)),
        dict.fromkeys(KINDS, "invalid address bits, expected 128, got 0")
        | {"single": None},
    ),
    (
        node(OWN.replace("/128", "/64")),
        dict.fromkeys(KINDS, "invalid address bits, expected 128, got 64")
        | {"single": None},
    ),
    (
        node("192.0.2.1/32"),
        dict.fromkeys(KINDS, "invalid address bits, expected 128, got 32")
        | {"single": None},
    ),
    (
        tunnel(AGENT.bytes),
        dict.fromkeys(KINDS) | {"agent": "agents cannot open tunnels"},
    ),
    (
        tunnel(OTHER.bytes),
        {
            "agent": "agents cannot open tunnels",
            "client": WRONG_AGENT,
            "user": NOT_FOUND,
            "single": None,
        },
    ),
    (
        tunnel(bytes(15)),
        {
            "agent": "agents cannot open tunnels",
            "client": BAD_ID,
            "user": BAD_ID,
            "single": None,
        },
    ),
    (RFH, dict.fromkeys(KINDS) | {"client": NO_RFH, "user": NO_RFH}),
    (
        {"remove_tunnel": {"id": OTHER.bytes}, "disconnect": {}},
        dict.fromkeys(KINDS),
    ),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fields", "answers"), TABLE)
async def test_table(
    kind: str, fields: dict[str, Any], answers: dict[str, str | None]
) -> None:
    request = tailnet_pb2.CoordinateRequest(**fields)
    error = answers[kind]
    if error is None:
        await KINDS[kind].authorize(request)
    else:
        with pytest.raises(AuthorizationError, match=f"^{re.escape(error)}$"):
            await KINDS[kind].authorize(request)


# What Go's netip.ParsePrefix says.
NO_PREFIXES = {
    "nonsense": "no '/'",
    "": "no '/'",
    "nonsense/128": 'ParseAddr("nonsense"): unable to parse IP',
    "1.2.3/32": 'ParseAddr("1.2.3"): unable to parse IP',
    "::1/x": 'bad bits after slash: "x"',
    "::1/": 'bad bits after slash: ""',
    "::1/+1": 'bad bits after slash: "+1"',
    "::1/0128": 'bad bits after slash: "0128"',
    "::1/129": "prefix length out of range",
    "::1%eth0/128": "IPv6 zones cannot be present in a prefix",
}


@pytest.mark.parametrize(("text", "error"), NO_PREFIXES.items())
@pytest.mark.parametrize("kind", ["agent", "client", "user"])
async def test_no_prefix(kind: str, text: str, error: str) -> None:
    request = tailnet_pb2.CoordinateRequest(**node(text))
    full = f'parse node address: netip.ParsePrefix("{text}"): {error}'
    with pytest.raises(AuthorizationError, match=f"^{re.escape(full)}$"):
        await KINDS[kind].authorize(request)


ADDRESSES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.from_regex(r"[0-9a-f:.%]{0,20}/[0-9]{0,4}", fullmatch=True),
    st.builds("{}/{}".format, st.ip_addresses(), st.integers(0, 130)),
)


@given(st.lists(ADDRESSES, max_size=3), st.lists(ADDRESSES, max_size=3))
async def test_any_addresses(addresses: list[str], allowed: list[str]) -> None:
    """An agent gets by with its own, and with nothing else."""
    request = tailnet_pb2.CoordinateRequest(
        **node(*addresses, allowed_ips=tuple(allowed))
    )
    try:
        await KINDS["agent"].authorize(request)
    except AuthorizationError:
        return
    assert {*addresses, *allowed} <= {OWN, CODER, LEGACY}


async def test_only_the_beginning_of_what_is_wrong_is_said() -> None:
    """It ends up in the log."""
    request = tailnet_pb2.CoordinateRequest()
    request.update_self.node.addresses.append('"' * 10_000)
    with pytest.raises(AuthorizationError) as caught:
        await ClientAuth(UUID(int=1)).authorize(request)
    assert len(str(caught.value)) < 400
