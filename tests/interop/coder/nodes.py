"""Nodes that nobody is behind."""

from __future__ import annotations

from uuid import UUID

from tailnet.addresses import node_id, tailscale_address
from tailnet.control.convert import disco_key_to_proto, node_key_to_proto
from tailnet.control.proto import tailnet_pb2
from tailnet.keys import DiscoPrivate, NodePrivate

__all__ = ("make_node",)


def make_node(peer_id: UUID) -> tailnet_pb2.Node:
    """A node that will never answer, at home in the server's relay."""
    prefix = f"{tailscale_address(peer_id)}/128"
    node = tailnet_pb2.Node(
        id=node_id(peer_id),
        key=node_key_to_proto(NodePrivate.generate().public()),
        disco=disco_key_to_proto(DiscoPrivate.generate().public()),
        preferred_derp=999,
        addresses=[prefix],
        allowed_ips=[prefix],
    )
    node.as_of.GetCurrentTime()
    return node
