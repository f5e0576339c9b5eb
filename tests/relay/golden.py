"""Recorded sessions of whole servers, and how two of them are compared.

A recording (``tests/data/coder``) is what went over the wire between a real
agent, a real client and Coder's server, one row an event. The replay of one
(``tests/relay/replay.py``) makes rows of the same shape of what our server
answers. :func:`transcript` sorts the rows into streams, each in its order, and
puts a name in place of what is another one in every session: keys, times and
ids. What is left has to be equal.

Answers of the Agent API are not compared: the recorded ones are not Coder's,
only that and how they were framed is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from google.protobuf import json_format, message_factory

from tailnet.control.proto import tailnet_pb2

__all__ = (
    "AGENT_ID",
    "SESSIONS",
    "Recording",
    "Row",
    "Transcript",
    "changes",
    "differences",
    "load",
    "transcript",
)

DATA: Final = Path(__file__).parents[1] / "data" / "coder"
SESSIONS: Final = ("block-endpoints", "direct", "fallback-ws", "force-ws", "relay")
AGENT_ID: Final = "8c7d5f4e-0b1a-4c2d-9e3f-a1b2c3d4e5f6"

Row: TypeAlias = Mapping[str, Any]
# What was said in each stream, by its name; inputs of ours under ``c2s``.
Transcript: TypeAlias = dict[str, list[Any]]

# So much of each direction of a DERP connection was recorded.
MAX_DERP_FRAMES: Final = 12

# "TS" and a speech balloon (disco.go Magic), in hex.
DISCO_MAGIC: Final = "5453f09f92ac"

TAILNET: Final = "/coder.tailnet.v2.Tailnet/"
_METHODS: Final = tailnet_pb2.DESCRIPTOR.services_by_name["Tailnet"].methods_by_name

# Seconds that a clock may be off between two rows: the recorded Date is that of
# another answer, in whole seconds.
_CLOCK_SLACK: Final = 5


@dataclass(frozen=True)
class Recording:
    """A session.

    Attributes:
        rows: In the order in which they happened.
        names: Bytes that are others in every session, by name.
    """

    rows: Sequence[Row]
    names: Mapping[str, bytes]

    def flag(self, name: str) -> bool:
        """What the server was told to tell its clients."""
        (answer,) = (
            row
            for row in self.rows
            if row["ev"] == "response" and row["path"].endswith("/connection")
        )
        return bool(answer["json"][name])


def load(session: str) -> Recording:
    """Read a recording, without what a proxy in front of the server answered."""
    rows = [
        json.loads(line)
        for line in (DATA / f"{session}.jsonl").read_text("utf-8").splitlines()
    ]
    proxied = {row["conn"] for row in rows if row.get("status") == 426}
    rows = [row for row in rows if row["conn"] not in proxied]
    return Recording(rows, names_in(rows))


def names_in(rows: Iterable[Row]) -> dict[str, bytes]:
    """The keys and ids of a session.

    The agent's id is always the same; of the client's the agent hears first.
    """
    names: dict[str, bytes] = {}
    for row in rows:
        if row["ev"] == "derp" and row["type"] == "ServerKey":
            names.setdefault("relay key", bytes.fromhex(row["head"])[8:40])
        elif row["ev"] == "derp" and row["type"] == "ClientInfo":
            names.setdefault(f"{row['peer']} key", bytes.fromhex(row["head"])[:32])
        elif (
            row["ev"] == "drpc"
            and (row["dir"], row["kind"], row["peer"]) == ("s2c", "Message", "agent")
            and row["rpc"] == f"{TAILNET}Coordinate"
        ):
            response = tailnet_pb2.CoordinateResponse.FromString(
                bytes.fromhex(row["hex"])
            )
            names.setdefault("client id", response.peer_updates[0].id)
    return names


def transcript(
    rows: Sequence[Row], names: Mapping[str, bytes], *, is_ours: bool = False
) -> Transcript:
    """Sort rows into streams, without what is other in each session.

    Args:
        rows: Of a recording or a replay.
        names: See :class:`Recording`.
        is_ours: Leave out what we know to send besides; see ``EXTRA_HEADERS``.
    """
    streams: Transcript = {}
    now = 0.0
    for row in rows:
        if row["ev"] == "response" and "Date" in row["headers"]:
            now = parsedate_to_datetime(row["headers"]["Date"]).timestamp()
        name = _stream_of(row)
        if not name:
            continue
        value = _value_of(row, names, now, is_ours=is_ours)
        if value is not None:
            streams.setdefault(f"{row['conn']} {row['peer']} {name}", []).append(value)
    for name in [name for name in streams if " DERP " in name]:
        recorded = streams.pop(name)[:MAX_DERP_FRAMES]
        for lane, is_disco in (("", False), (" disco", True)):
            values = [item for item in recorded if _is_disco(item) == is_disco]
            if values:
                streams[name + lane] = values
    return streams


def _is_disco(frame: Any) -> bool:
    """Whether a packet is in a lane of its own in both relays.

    Its place among those of the other lane is left to chance in Coder's.
    """
    return any(str(part).startswith(DISCO_MAGIC) for part in frame["head"])


def _stream_of(row: Row) -> str:
    match row["ev"]:
        case "response":
            return "HTTP"
        case "yamux" if row["dir"] == "s2c":
            return f"yamux {row['stream']}"
        case "drpc" if row["dir"] == "s2c":
            return f"dRPC {row['stream']} {row['rpc']}"
        case "derp":
            return f"DERP {row['dir']}"
        case "ws_control" | "eof" if row["dir"] == "s2c":
            return "end"
    return ""


def _value_of(
    row: Row, names: Mapping[str, bytes], now: float, *, is_ours: bool
) -> Any:
    match row["ev"]:
        case "response":
            return _response(row, names, is_ours=is_ours)
        case "yamux":
            # Where packets are cut into frames, and when credit is given, is
            # nothing that the other end may rely on.
            if row["type"] in ("data", "window"):
                return row["flags"] or None
            return f"{row['type']} {row['flags']} {row['len']}"
        case "drpc":
            packet = {key: row[key] for key in ("kind", "msg", "drpc_stream")}
            packet["control"] = row["control"]
            if row["kind"] == "Message" and row["rpc"].startswith(TAILNET):
                packet["message"] = _message(row, names, now)
            elif row["kind"] == "Error":
                packet["error"] = row["hex"]
            return packet
        case "derp":
            return {
                "type": row["type"],
                "len": row["len"],
                "head": _derp_head(row, names),
                "ws": row["ws"],
            }
        case "ws_control":
            if (row["op"], row["code"], row["reason"]) == ("close", 1000, ""):
                # Coder's client does not wait for it: it may or may not be
                # on the wire before the connection is gone.
                return None
            return {"op": row["op"], "code": row["code"], "reason": row["reason"]}
        case "eof":
            return "eof"
    return None


# -- HTTP ---------------------------------------------------------------------

# Ours, and no harm: pages of other hosts may measure too, as with derper.
EXTRA_HEADERS: Final = {
    "/derp/latency-check": {"Access-Control-Allow-Origin"},
}


def _response(row: Row, names: Mapping[str, bytes], *, is_ours: bool) -> Any:
    headers = dict(row["headers"])
    if is_ours:
        for extra in EXTRA_HEADERS.get(row["path"], ()):
            headers.pop(extra, None)
    for name in ("Date", "X-Coder-Build-Version"):
        if name in headers:
            headers[name] = f"<{name}>"
    if headers.get("Derp-Public-Key") == names["relay key"].hex():
        headers["Derp-Public-Key"] = "<relay key>"
    return {
        "path": row["path"],
        "status": row["status"],
        "headers": headers,
        "json": row.get("json"),
        "is line": row.get("body", "").endswith("\n"),
    }


# -- dRPC ---------------------------------------------------------------------


def _message(row: Row, names: Mapping[str, bytes], now: float) -> Any:
    method = _METHODS[row["rpc"].removeprefix(TAILNET)]
    data = bytes.fromhex(row["hex"])
    message = message_factory.GetMessageClass(method.output_type).FromString(data)
    fields = json_format.MessageToDict(message, preserving_proto_field_name=True)
    if method.name == "RefreshResumeToken":
        assert isinstance(message, tailnet_pb2.RefreshResumeTokenResponse)
        return _resume_token(message, names, now)
    # The length, for fields that our .proto files might not have.
    return {"len": len(data), "fields": _named(fields, names)}


def _named(value: Any, names: Mapping[str, bytes]) -> Any:
    """Put names in place of keys and ids, which are in base64 here."""
    if isinstance(value, dict):
        return {key: _named(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    for name, data in names.items():
        # Keys of nodes have "np" in front (key.NodePublic.MarshalBinary).
        if value in (_base64(data), _base64(b"np" + data)):
            return f"<{name}>"
    return value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _resume_token(
    response: tailnet_pb2.RefreshResumeTokenResponse,
    names: Mapping[str, bytes],
    now: float,
) -> Any:
    """A token, taken apart; its signature is by another key each time.

    The recorded server was told to issue tokens for an hour instead of Coder's
    24: what is compared is when a client has to come again, as a part of it.
    """
    header, claims = (
        json.loads(base64.urlsafe_b64decode(f"{part}=="))
        for part in response.token.split(".")[:2]
    )
    lifetime = claims["exp"] - now
    refresh_in = response.refresh_in.ToTimedelta().total_seconds()
    if header.get("kid"):
        header["kid"] = "<kid>"
    if claims.get("sub", "").replace("-", "") == names["client id"].hex():
        claims["sub"] = "<client id>"
    claims["exp"] = "<exp>"
    # Ours binds it to a user (a row of differences.md); Coder's has none.
    claims.pop("user", None)
    off = abs(lifetime - 2 * refresh_in)
    return {
        "header": header,
        "claims": claims,
        "refresh in": "half" if off < _CLOCK_SLACK else f"{refresh_in} of {lifetime}",
        "expires at": response.expires_at.seconds == now + round(lifetime),
    }


# -- DERP ---------------------------------------------------------------------


def _derp_head(row: Row, names: Mapping[str, bytes]) -> Any:
    head = bytes.fromhex(row["head"])
    match row["type"]:
        case "ServerKey":
            return [head[:8].hex(), _key(head[8:40], names)]
        case "ClientInfo":  # the rest is in a box
            return [_key(head[:32], names)]
        case "ServerInfo":
            return []
        case "SendPacket" | "RecvPacket" | "PeerGone":
            return [_key(head[:32], names), head[32:].hex()]
    return [head.hex()]


def _key(data: bytes, names: Mapping[str, bytes]) -> str:
    return next((f"<{name}>" for name, key in names.items() if key == data), data.hex())


# -- comparing ----------------------------------------------------------------


def differences(theirs: Transcript, ours: Transcript) -> list[str]:
    """Where two transcripts differ; empty if they do not."""
    found = [f"{name} is not there" for name in theirs if name not in ours]
    found += [f"{name} is one too many" for name in ours if name not in theirs]
    for name in theirs:
        if name not in ours:
            continue
        left, right = theirs[name], ours[name]
        found += [
            f"{name}, {index}: {their} is not {our}"
            for index, (their, our) in enumerate(zip(left, right, strict=False))
            # As JSON, where 1 and True are not the same.
            if _json(their) != _json(our)
        ]
        if len(left) != len(right):
            found.append(f"{name}: {len(left)} are not {len(right)}")
    return found


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def changes(streams: Transcript) -> Iterator[tuple[str, Transcript]]:
    """Every transcript with just one thing changed, and what that is.

    One value of one item; two neighbours in each other's place, if that is to
    be seen; an item less; a stream less.
    """
    for name, items in streams.items():
        yield f"no {name}", {k: v for k, v in streams.items() if k != name}
        for index, item in enumerate(items):
            less = [*items[:index], *items[index + 1 :]]
            yield f"{name}: no {index}", {**streams, name: less}
            for where, changed in _changed(item):
                more = [*items[:index], changed, *items[index + 1 :]]
                yield f"{name}, {index}: {where}", {**streams, name: more}
            if index and items[index - 1] != item:
                moved = [*items[: index - 1], item, items[index - 1]]
                moved += items[index + 1 :]
                yield f"{name}: {index} before", {**streams, name: moved}


def _changed(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    match value:
        case dict():
            for key in value:
                less = {k: v for k, v in value.items() if k != key}
                yield f"{where}.{key} less", less
                for path, other in _changed(value[key], f"{where}.{key}"):
                    yield path, {**value, key: other}
        case list():
            yield f"{where} more", [*value, None]
            for index, item in enumerate(value):
                for path, other in _changed(item, f"{where}.{index}"):
                    yield path, [*value[:index], other, *value[index + 1 :]]
        case bool():
            yield where, not value
        case int() | float():
            yield where, value + 1
        case str():
            yield where, f"{value}~"
        case _:
            yield where, "something"
