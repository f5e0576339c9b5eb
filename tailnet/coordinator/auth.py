"""What a peer may ask of the coordinator, by the kind of peer.

Coder ``tailnet/tunnel.go``; the texts are its of v2.24.0. There allowed_ips are
not looked at; here they are, an agent's as in later versions: with them a peer
could draw others' packets to itself.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol
from uuid import UUID

from tailnet.addresses import LEGACY_AGENT_ADDRESS, coder_address, tailscale_address
from tailnet.control.convert import uuid_from_proto
from tailnet.control.proto import tailnet_pb2
from tailnet.errors import AuthorizationError, RemoteProtocolError

__all__ = (
    "AgentAuth",
    "ClientAuth",
    "SingleTailnetAuth",
    "TunnelAuth",
    "UserAuth",
)

_NOT_FOUND: Final = "workspace agent not found or you do not have permission"

# Ours, in characters. The longest address has 50.
_MAX_QUOTED_LEN: Final = 128

# Nodes have single addresses only, and IPv6 ones.
_ADDRESS_BITS: Final = 128

# Go's netip: no sign, no leading zero.
_BITS: Final = re.compile(r"0|[1-9][0-9]{0,8}")


class TunnelAuth(Protocol):
    """Judges the requests of one peer."""

    async def authorize(self, request: tailnet_pb2.CoordinateRequest) -> None:
        """Return if the whole request may be done.

        Raises:
            AuthorizationError: It may not; the text goes to the peer.
        """
        ...


class AgentAuth:
    """An agent: opens no tunnels, and has the addresses of its UUID."""

    def __init__(self, agent_id: UUID) -> None:
        self._permitted = frozenset(
            (
                tailscale_address(agent_id),
                coder_address(agent_id),
                LEGACY_AGENT_ADDRESS,
            )
        )

    async def authorize(self, request: tailnet_pb2.CoordinateRequest) -> None:
        """See :class:`TunnelAuth`."""
        if request.HasField("add_tunnel"):
            raise AuthorizationError("agents cannot open tunnels")
        node = request.update_self.node
        for prefixes in (node.addresses, node.allowed_ips):
            for address in _single_addresses(prefixes):
                if address not in self._permitted:
                    raise AuthorizationError(f"invalid node address, got {address}")


class ClientAuth:
    """A client of one agent, which may open a tunnel to it alone."""

    def __init__(self, agent_id: UUID) -> None:
        self._agent_id = agent_id

    async def authorize(self, request: tailnet_pb2.CoordinateRequest) -> None:
        """See :class:`TunnelAuth`."""
        destination = _destination(request)
        if destination not in {None, self._agent_id}:
            raise AuthorizationError(
                f"invalid agent id, expected {self._agent_id}, got {destination}"
            )
        _authorize_client(request)


class UserAuth:
    """A client of a user, who may open tunnels to what they may connect to."""

    def __init__(self, may_connect: Callable[[UUID], Awaitable[bool]]) -> None:
        """Make one.

        Args:
            may_connect: Whether the user may connect to an agent, by its id.
        """
        self._may_connect = may_connect

    async def authorize(self, request: tailnet_pb2.CoordinateRequest) -> None:
        """See :class:`TunnelAuth`."""
        _authorize_client(request)
        destination = _destination(request)
        if destination is not None and not await self._may_connect(destination):
            raise AuthorizationError(_NOT_FOUND)


class SingleTailnetAuth:
    """A server's own peer: may do anything."""

    async def authorize(self, request: tailnet_pb2.CoordinateRequest) -> None:
        """See :class:`TunnelAuth`."""


def _authorize_client(request: tailnet_pb2.CoordinateRequest) -> None:
    node = request.update_self.node
    addresses = set(_single_addresses(node.addresses))  # any will do
    for address in _single_addresses(node.allowed_ips):
        # Go's clients publish the same list twice (tailnet/node.go). With
        # others' addresses one would draw the agent's packets to itself.
        if address not in addresses:
            raise AuthorizationError(f"invalid node allowed IP, got {address}")
    if request.ready_for_handshake:
        raise AuthorizationError("clients may not send ready_for_handshake")


def _destination(request: tailnet_pb2.CoordinateRequest) -> UUID | None:
    if not request.HasField("add_tunnel"):
        return None
    try:
        return uuid_from_proto(request.add_tunnel.id)
    except RemoteProtocolError as exc:
        raise AuthorizationError(f"parse add tunnel id: {exc}") from exc


# -- addresses --------------------------------------------------------------


def _single_addresses(
    prefixes: Iterable[str],
) -> Iterable[IPv4Address | IPv6Address]:
    for prefix in prefixes:
        try:
            address, bits = _parse_prefix(prefix)
        except ValueError as exc:
            raise AuthorizationError(
                f"parse node address: netip.ParsePrefix({_quoted(prefix)}): {exc}"
            ) from exc
        if bits != _ADDRESS_BITS:
            raise AuthorizationError(
                f"invalid address bits, expected {_ADDRESS_BITS}, got {bits}"
            )
        yield address


def _parse_prefix(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    """Go's netip.ParsePrefix; ValueError with the rest of its text."""
    raw_address, slash, raw_bits = text.rpartition("/")
    if not slash:
        raise ValueError("no '/'")
    try:
        address = ipaddress.ip_address(raw_address)
    except ValueError:
        raise ValueError(
            f"ParseAddr({_quoted(raw_address)}): unable to parse IP"
        ) from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError("IPv6 zones cannot be present in a prefix")
    if not _BITS.fullmatch(raw_bits):
        raise ValueError(f"bad bits after slash: {_quoted(raw_bits)}")
    bits = int(raw_bits)
    if bits > address.max_prefixlen:
        raise ValueError("prefix length out of range")
    return address, bits


def _quoted(text: str) -> str:
    """Near enough to Go's %q; the beginning of it, as it ends up in logs."""
    return json.dumps(text[:_MAX_QUOTED_LEN], ensure_ascii=False)
