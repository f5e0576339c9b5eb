"""Responses put together by hand are the generated code's, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from tailnet.control.proto import tailnet_pb2
from tailnet.coordinator.responses import (
    MAX_BATCH,
    MAX_BATCH_SIZE,
    Kind,
    encode_error,
    encode_update,
    join_updates,
)

DATA = Path(__file__).parents[1] / "data" / "coder"
VECTORS: dict[str, Any] = json.loads((DATA / "vectors.json").read_text())
PEER = UUID(VECTORS["uuid"]).bytes
NODE = bytes.fromhex(VECTORS["Node"]["hex"])


def test_vectors() -> None:
    assert (
        encode_update(PEER, Kind.NODE, "init", NODE).hex()
        == (VECTORS["CoordinateResponse.node"]["hex"])
    )
    assert (
        encode_update(PEER, Kind.READY_FOR_HANDSHAKE).hex()
        == (VECTORS["CoordinateResponse.rfh"]["hex"])
    )
    assert (
        encode_error("coordinator closed").hex()
        == (VECTORS["CoordinateResponse.error"]["hex"])
    )


def test_kinds() -> None:
    names = tailnet_pb2.CoordinateResponse.PeerUpdate.Kind
    assert {kind.name: kind.value for kind in Kind} == {
        name: number for name, number in names.items() if number
    }


@given(
    st.binary(min_size=16, max_size=16),
    st.sampled_from(Kind),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.none() | st.integers(0, 70_000),
)
def test_any_update(peer_id: bytes, kind: Kind, reason: str, size: int | None) -> None:
    node = None if size is None else tailnet_pb2.Node(disco="x" * size)
    expected = tailnet_pb2.CoordinateResponse(
        peer_updates=[{"id": peer_id, "kind": kind, "reason": reason, "node": node}]
    )
    raw = None if node is None else node.SerializeToString()
    made = encode_update(peer_id, kind, reason, raw)
    assert made == expected.SerializeToString()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))
def test_any_error(text: str) -> None:
    expected = tailnet_pb2.CoordinateResponse(error=text)
    assert encode_error(text) == expected.SerializeToString()


def test_an_error_that_is_no_unicode() -> None:
    made = tailnet_pb2.CoordinateResponse.FromString(encode_error("a\ud800b"))
    assert made.error == "a?b"


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, []),
        (1, [1]),
        (MAX_BATCH, [MAX_BATCH]),
        (MAX_BATCH + 1, [MAX_BATCH, 1]),
        (2 * MAX_BATCH + 5, [MAX_BATCH, MAX_BATCH, 5]),
    ],
)
def test_batches(count: int, sizes: list[int]) -> None:
    ids = [UUID(int=number).bytes for number in range(count)]
    updates = [encode_update(peer_id, Kind.LOST, "lost") for peer_id in ids]
    batches = [
        tailnet_pb2.CoordinateResponse.FromString(data).peer_updates
        for data in join_updates(updates)
    ]
    assert [len(batch) for batch in batches] == sizes
    assert [update.id for batch in batches for update in batch] == ids


def test_batches_are_short_enough() -> None:
    updates = [encode_update(PEER, Kind.NODE, "init", bytes(64 << 10))] * 40
    batches = list(join_updates(updates))
    assert b"".join(batches) == b"".join(updates)
    assert all(len(batch) <= MAX_BATCH_SIZE for batch in batches)
    assert len(batches) == 3


def test_a_long_update_goes_alone() -> None:
    long = encode_update(PEER, Kind.NODE, "init", bytes(MAX_BATCH_SIZE))
    short = encode_update(PEER, Kind.LOST, "lost")
    assert list(join_updates([long, short])) == [long, short]
