"""What is said on each connection, and what is made of the answers."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from tailnet.control.proto import tailnet_pb2
from tailnet.errors import RemoteProtocolError
from tailnet.sdk.coordination import (
    NOT_ANNOUNCED,
    CoordinationState,
    PeerUpdate,
    PeerUpdateKind,
)

A = UUID("aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa")
B = UUID("bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb")
NODE = tailnet_pb2.Node(id=1, preferred_derp=999)


def said(state: CoordinationState) -> list[bytes]:
    requests = []
    while (request := state.next_request()) is not None:
        requests.append(request)
    return requests


def response(*updates: tuple[UUID, int], error: str = "") -> bytes:
    message = tailnet_pb2.CoordinateResponse(error=error)
    for peer_id, kind in updates:
        update = message.peer_updates.add(id=peer_id.bytes)
        # An enum field of proto3 takes numbers that it does not know.
        update.MergeFromString(bytes([0x18, kind]))
        if kind == 1:
            update.node.CopyFrom(NODE)
    return message.SerializeToString()


# facts of the wire: add_tunnel is field 3, its id field 1; disconnect field 2.
ADD_A = bytes.fromhex("1a12 0a10") + A.bytes
ADD_B = bytes.fromhex("1a12 0a10") + B.bytes
REMOVE_A = bytes.fromhex("2212 0a10") + A.bytes
READY_A = bytes.fromhex("2a12 0a10") + A.bytes
DISCONNECT = bytes.fromhex("1200")
NODE_BYTES = NODE.SerializeToString()
UPDATE = bytes([0x0A, 2 + len(NODE_BYTES), 0x0A, len(NODE_BYTES)]) + NODE_BYTES


def test_requests_on_the_wire() -> None:
    state = CoordinationState()
    state.connection_made()
    state.add_tunnel(A)
    state.update_node(NODE)
    state.ready_for_handshake([A])
    state.ready_for_handshake([])
    state.remove_tunnel(A)
    state.disconnect()
    assert said(state) == [ADD_A, UPDATE, READY_A, REMOVE_A, DISCONNECT]


def test_everything_is_said_anew_and_only_once() -> None:
    state = CoordinationState()
    state.add_tunnel(A)
    state.add_tunnel(B)
    state.add_tunnel(A)
    state.update_node(NODE)
    state.ready_for_handshake([A])
    assert said(state) == []  # nobody to say it to
    state.disconnect()
    for _ in range(2):
        state.connection_made()
        assert said(state) == [ADD_A, ADD_B, UPDATE]
        state.ready_for_handshake([A])
        state.connection_lost()
        assert said(state) == []
    state.remove_tunnel(A)
    state.remove_tunnel(A)
    state.connection_made()
    assert said(state) == [ADD_B, UPDATE]
    state.add_tunnel(B)
    assert said(state) == []
    assert state.tunnels == {B}


def test_of_nodes_that_wait_the_last_one_is_said() -> None:
    state = CoordinationState()
    state.connection_made()
    node = tailnet_pb2.Node(id=7)
    state.update_node(node)
    node.id = 8  # what was given is a copy
    state.add_tunnel(A)
    state.update_node(NODE)
    assert said(state) == [UPDATE, ADD_A]


def test_updates() -> None:
    state = CoordinationState()
    state.connection_made()
    assert state.receive_response(response((A, 1), (B, 1), (A, 4))) == [
        PeerUpdate(A, PeerUpdateKind.NODE, NODE),
        PeerUpdate(B, PeerUpdateKind.NODE, NODE),
        PeerUpdate(A, PeerUpdateKind.READY_FOR_HANDSHAKE),
    ]
    assert state.peers == {A, B}
    assert [u.kind for u in state.receive_response(response((A, 2), (B, 3)))] == [
        PeerUpdateKind.DISCONNECTED,
        PeerUpdateKind.LOST,
    ]
    assert state.peers == frozenset()
    assert state.receive_response(b"") == []
    # Of the future.
    assert state.receive_response(response((A, 0), (A, 9))) == []


def test_who_is_not_announced_again_is_lost() -> None:
    state = CoordinationState()
    state.connection_made()
    state.receive_response(response((A, 1), (B, 1)))
    assert state.lose_unheard() == []  # both were announced on this one
    state.connection_lost()
    assert state.lose_unheard() == []  # there is nobody to ask
    state.connection_made()
    state.receive_response(response((B, 1)))
    assert state.lose_unheard() == [
        PeerUpdate(A, PeerUpdateKind.LOST, None, NOT_ANNOUNCED)
    ]
    assert state.lose_unheard() == []
    assert state.peers == {B}


def test_readiness_alone_announces_nobody() -> None:
    state = CoordinationState()
    state.connection_made()
    state.receive_response(response((A, 1)))
    state.connection_made()
    state.receive_response(response((A, 4)))
    assert [update.peer_id for update in state.lose_unheard()] == [A]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\xff", "no CoordinateResponse"),
        (bytes.fromhex("0a040a0101") + b"\x18", "no CoordinateResponse"),
        (bytes.fromhex("0a050a01011801"), "invalid UUID"),
        (b"\x0a\x14\x0a\x10" + A.bytes + b"\x18\x01", "no node in the update"),
        (response(error="coordinator closed"), "failed: coordinator closed"),
    ],
)
def test_responses_that_end_it(data: bytes, problem: str) -> None:
    with pytest.raises(RemoteProtocolError, match=problem):
        CoordinationState().receive_response(data)


def test_an_error_about_readiness_ends_nothing() -> None:
    text = f'ready for handshake error: you do not share a tunnel with "{A}"'
    state = CoordinationState()
    assert state.receive_response(response(error=text)) == []


@given(data=st.binary(max_size=80))
def test_any_bytes_are_updates_or_an_error(data: bytes) -> None:
    state = CoordinationState()
    try:
        state.receive_response(data)
    except RemoteProtocolError:
        pass
