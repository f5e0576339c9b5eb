"""Sessions recorded between Coder's own programs: see tests/data/coder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tailnet.control.yamux_frames import HEADER_LEN, FrameHeader, decode_header

__all__ = ("FILES", "Payload", "connections", "frames", "payloads")

DATA: Final = Path(__file__).parents[1] / "data" / "coder"
FILES: Final = sorted(path.name for path in DATA.glob("*.ws.jsonl"))


class Payload(NamedTuple):
    """One message of a websocket."""

    conn: int
    peer: str
    to_server: bool
    data: bytes


def payloads(file: str) -> list[Payload]:
    """All of a file, in their order."""
    found = []
    for line in (DATA / file).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert (row["op"], row["fin"]) == (2, True)
        to_server = {"c2s": True, "s2c": False}[row["dir"]]
        found.append(
            Payload(row["conn"], row["peer"], to_server, bytes.fromhex(row["hex"]))
        )
    return found


def connections(file: str) -> dict[int, list[Payload]]:
    """Payloads by the connection they were on."""
    by_conn: dict[int, list[Payload]] = {}
    for payload in payloads(file):
        by_conn.setdefault(payload.conn, []).append(payload)
    return by_conn


def frames(data: bytes) -> Iterator[tuple[FrameHeader, bytes]]:
    """The yamux frames in whole bytes of one direction."""
    position = 0
    while position < len(data):
        header = decode_header(data, position)
        position += HEADER_LEN
        length = header.length if header.type == 0 else 0
        assert position + length <= len(data)
        yield header, data[position : position + length]
        position += length
