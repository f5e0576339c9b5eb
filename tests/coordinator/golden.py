"""Recorded coordination: what Coder's coordinator told its peers, to compare.

A recording is the Coordinate calls of an agent and a client. Its requests are
replayed in their order, and what is answered is compared with what was
answered then: per peer, in order. Keys, times and ids are other ones in every
session, so they are replaced by when they were first seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from google.protobuf import json_format

from tailnet.control.proto import tailnet_pb2

__all__ = (
    "METHOD",
    "SESSIONS",
    "Packet",
    "Recording",
    "differences",
    "load",
    "transcript",
)

DATA: Final = Path(__file__).parents[1] / "data" / "coder"
SESSIONS: Final = ("block-endpoints", "direct", "fallback-ws", "force-ws", "relay")
METHOD: Final = "/coder.tailnet.v2.Tailnet/Coordinate"

# dRPC packets as they were recorded: kind and body.
Packet = tuple[str, bytes]

# Other in every session.
_MASKED: Final = frozenset({"id", "key", "disco", "as_of"})
# And these hold addresses, ports and times.
_NUMBERS: Final = frozenset({"addresses", "allowed_ips", "endpoints", "derp_latency"})


@dataclass
class Recording:
    """The Coordinate calls of a session.

    Attributes:
        ids: Of the peers.
        requests: Peer and packet, in the order of the recording.
        answers: Packets by peer.
    """

    ids: dict[str, UUID]
    requests: list[tuple[str, Packet]] = field(default_factory=list)
    answers: dict[str, list[Packet]] = field(default_factory=dict)


def load(session: str) -> Recording:
    """Read a recording."""
    rows = [
        row
        for line in (DATA / f"{session}.jsonl").read_text().splitlines()
        if (row := json.loads(line))["ev"] == "drpc" and row["rpc"] == METHOD
    ]
    agent = UUID(json.loads((DATA / "vectors.json").read_text())["uuid"])
    recording = Recording({"agent": agent})
    for row in sorted(rows, key=lambda row: row["t_ms"]):
        packet = row["kind"], bytes.fromhex(row.get("hex", ""))
        if row["dir"] == "c2s":
            recording.requests.append((row["peer"], packet))
        else:
            recording.answers.setdefault(row["peer"], []).append(packet)
    # The agent heard of nobody but the client.
    first = tailnet_pb2.CoordinateResponse.FromString(recording.answers["agent"][0][1])
    recording.ids["client"] = UUID(bytes=first.peer_updates[0].id)
    return recording


def transcript(packets: Iterable[Packet]) -> list[Any]:
    """What a peer was told, masked: one JSON value for each packet.

    Ids are masked alike within a transcript, so that an update about the wrong
    peer shows.
    """
    seen: dict[str, str] = {}
    found: list[Any] = []
    for kind, body in packets:
        if kind != "Message":
            found.append(kind)
            continue
        response = tailnet_pb2.CoordinateResponse.FromString(body)
        fields = json_format.MessageToDict(response, preserving_proto_field_name=True)
        found.append(_mask(fields, seen))
    return found


def _mask(value: Any, seen: dict[str, str], name: str = "") -> Any:
    if name in _NUMBERS:
        return f"{len(value)} {name}"
    if isinstance(value, Mapping):
        return {key: _mask(item, seen, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_mask(item, seen, name) for item in value]
    if name in _MASKED:
        return seen.setdefault(f"{name} {value}", f"{name} {len(seen)}")
    return value


def differences(theirs: Sequence[Any], ours: Sequence[Any]) -> list[str]:
    """Where two transcripts differ; empty if they do not."""
    found = [
        f"{index}: {their} is not {our}"
        for index, (their, our) in enumerate(zip(theirs, ours, strict=False))
        if their != our
    ]
    if len(theirs) != len(ours):
        found.append(f"{len(theirs)} packets are not {len(ours)}")
    return found
