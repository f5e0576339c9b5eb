"""The DERP handshake: ServerKey, ClientInfo, ServerInfo.

Wire format: tailscale ``derp/derp.go``, ``derp_client.go`` and
``derpserver.go``. The relay speaks first::

    S -> C  ServerKey   magic, the relay's public key
    C -> S  ClientInfo  the client's public key, and JSON in a box to the relay
    S -> C  ServerInfo  JSON in a box to the client

The box around ClientInfo proves that the client has the private key. The JSON
is read as Go reads it: names match whatever their case, unknown ones are
ignored, missing ones take their default.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tailnet.derp.frames import (
    MAGIC,
    MAX_CLIENT_INFO_LEN,
    MAX_SERVER_INFO_LEN,
    PROTOCOL_VERSION,
    FrameType,
    RawFrame,
    encode_frame,
)
from tailnet.errors import KeyFormatError, LocalProtocolError, RemoteProtocolError
from tailnet.keys import KEY_LEN, NONCE_LEN, MeshKey, NodePrivate, NodePublic

__all__ = (
    "MAX_SERVER_KEY_LEN",
    "MIN_CLIENT_INFO_LEN",
    "ClientInfo",
    "ServerInfo",
    "decode_client_info",
    "decode_server_info",
    "decode_server_key",
    "encode_client_info",
    "encode_server_info",
    "encode_server_key",
)

SERVER_KEY_LEN: Final = len(MAGIC) + KEY_LEN

# derp_client.go recvServerKey reads at most this much and ignores the tail.
MAX_SERVER_KEY_LEN: Final = 1024

# Kept as long as the connection: not all of the 256 KiB that fit in the frame.
MAX_APP_NAME_LEN: Final = 64  # characters

MIN_CLIENT_INFO_LEN: Final = KEY_LEN + NONCE_LEN

_INT64: Final = range(-(1 << 63), 1 << 63)  # Go's int

# Halves of a UTF-16 pair without the other, which JSON can spell.
_UNPAIRED: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """What a client says of itself (derp.go ClientInfo).

    Attributes:
        version: DERP protocol version; relays do not check it.
        mesh_key: Proof of being a relay of the same region.
        can_ack_pings: The client answers Ping. Also the sign by which a relay
            knows a client that stands frames newer than itself.
        is_prober: A monitoring client.
        app_name: A label for statistics; a relay keeps 64 characters of it.
    """

    version: int = PROTOCOL_VERSION
    mesh_key: MeshKey | None = None
    can_ack_pings: bool = False
    is_prober: bool = False
    app_name: str = ""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a relay says of itself (derp.go ServerInfo).

    Attributes:
        version: DERP protocol version.
        token_bucket_rate: Bytes per second that the client may send; 0 means
            no limit. Go's client drops what is over it, silently.
        token_bucket_burst: Bytes.
    """

    version: int = PROTOCOL_VERSION
    token_bucket_rate: int = 0
    token_bucket_burst: int = 0


def encode_server_key(key: NodePublic) -> bytes:
    """Encode a ServerKey frame."""
    return encode_frame(FrameType.SERVER_KEY, MAGIC + bytes(key))


def decode_server_key(raw: RawFrame) -> NodePublic:
    """Interpret the first frame of a relay.

    Raises:
        RemoteProtocolError: Not a ServerKey, too short, or wrong magic.
    """
    body = raw.body
    if (
        raw.type != FrameType.SERVER_KEY
        or not SERVER_KEY_LEN <= len(body) <= MAX_SERVER_KEY_LEN
        or bytes(body[: len(MAGIC)]) != MAGIC
    ):
        raise RemoteProtocolError("the other side does not greet like a DERP relay")
    return NodePublic(bytes(body[len(MAGIC) : SERVER_KEY_LEN]))


def encode_client_info(
    private: NodePrivate,
    server: NodePublic,
    info: ClientInfo,
    *,
    nonce: bytes | None = None,
) -> bytes:
    """Encode a ClientInfo frame, its JSON written as Go writes it.

    Args:
        private: The client's key.
        server: The relay's, from ServerKey or the meta certificate.
        info: What to say.
        nonce: 24 bytes, for test vectors; random if None.

    Raises:
        RemoteProtocolError: ``server`` is no key that anyone can have.
        LocalProtocolError: The app name is too long, or no Unicode.
    """
    body: dict[str, object] = {}
    if info.mesh_key is not None:
        body["meshKey"] = info.mesh_key.to_text()
    if info.version:
        body["version"] = info.version
    body["CanAckPings"] = info.can_ack_pings
    if info.is_prober:
        body["IsProber"] = True
    if info.app_name:
        body["AppName"] = info.app_name
    try:
        text = msgspec.json.encode(body)
    except UnicodeEncodeError:
        raise LocalProtocolError("the app name is no Unicode") from None
    sealed = private.seal_to(server, text, nonce=nonce)
    frame_body = bytes(private.public()) + sealed
    if len(frame_body) > MAX_CLIENT_INFO_LEN:
        raise LocalProtocolError(f"ClientInfo cannot have {len(frame_body)} bytes")
    return encode_frame(FrameType.CLIENT_INFO, frame_body)


def decode_client_info(
    private: NodePrivate, raw: RawFrame
) -> tuple[NodePublic, ClientInfo]:
    """Interpret the first frame of a client.

    Args:
        private: The relay's key.
        raw: The frame.

    Returns:
        The client's key, proven by the box, and what it says.

    Raises:
        RemoteProtocolError: Wrong type or size, a box that does not open, bad
            JSON, or a mesh key that is not 64 hex digits.
    """
    size = len(raw.body)
    if raw.type != FrameType.CLIENT_INFO:
        raise RemoteProtocolError(
            f"the first frame is of type {raw.type:#04x}, not ClientInfo"
        )
    if not MIN_CLIENT_INFO_LEN <= size <= MAX_CLIENT_INFO_LEN:
        raise RemoteProtocolError(f"ClientInfo cannot have a {size}-byte body")
    key = NodePublic(bytes(raw.body[:KEY_LEN]))
    fields = _json_object(
        private.open_from(key, bytes(raw.body[KEY_LEN:])), "ClientInfo"
    )
    return key, ClientInfo(
        version=_field(fields, "version", int, 0),
        mesh_key=_mesh_key(fields),
        can_ack_pings=_field(fields, "canackpings", bool, False),
        is_prober=_field(fields, "isprober", bool, False),
        app_name=_field(fields, "appname", str, "")[:MAX_APP_NAME_LEN],
    )


def encode_server_info(
    private: NodePrivate,
    client: NodePublic,
    info: ServerInfo,
    *,
    nonce: bytes | None = None,
) -> bytes:
    """Encode a ServerInfo frame; see :func:`encode_client_info`."""
    body: dict[str, object] = {}
    if info.version:
        body["version"] = info.version
    if info.token_bucket_rate:
        body["TokenBucketBytesPerSecond"] = info.token_bucket_rate
    if info.token_bucket_burst:
        body["TokenBucketBytesBurst"] = info.token_bucket_burst
    sealed = private.seal_to(client, msgspec.json.encode(body), nonce=nonce)
    return encode_frame(FrameType.SERVER_INFO, sealed)


def decode_server_info(
    private: NodePrivate, server: NodePublic, raw: RawFrame
) -> ServerInfo:
    """Interpret a ServerInfo frame.

    Raises:
        RemoteProtocolError: Wrong type or size, a box that does not open, or
            bad JSON.
    """
    size = len(raw.body)
    if (
        raw.type != FrameType.SERVER_INFO
        or not NONCE_LEN <= size <= MAX_SERVER_INFO_LEN
    ):
        raise RemoteProtocolError(
            f"expected ServerInfo, got type {raw.type:#04x} with {size} bytes"
        )
    fields = _json_object(private.open_from(server, bytes(raw.body)), "ServerInfo")
    return ServerInfo(
        version=_field(fields, "version", int, 0),
        token_bucket_rate=_field(fields, "tokenbucketbytespersecond", int, 0),
        token_bucket_burst=_field(fields, "tokenbucketbytesburst", int, 0),
    )


class _Object(list[tuple[str, Any]]):
    """A JSON object as it stands: a name may come twice, and Go reads both."""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_Object, parse_constant=_refuse_constant
)


def _json_object(text: bytes, what: str) -> _Object:
    """Parse a JSON object, its names folded as Go matches them.

    encoding/json puts U+FFFD for bytes that are not UTF-8, so this does.
    """
    try:
        parsed = _DECODER.decode(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"{what} is not a JSON object") from exc
    if parsed is None:
        # To Go, null is an object whose fields all keep their default.
        return _Object()
    if not isinstance(parsed, _Object):
        raise RemoteProtocolError(f"{what} is not a JSON object")
    return _Object((name.casefold(), value) for name, value in parsed)


def _field(fields: _Object, name: str, kind: type, default: Any) -> Any:
    """A field of a JSON object; null changes nothing, as in Go.

    Every value of the name has to be right, even one that a later one replaces.
    """
    found = default
    for value in (value for key, value in fields if key == name):
        if value is None:
            continue
        if type(value) is not kind or (kind is int and value not in _INT64):
            raise RemoteProtocolError(f"the JSON field {name} is no {kind.__name__}")
        found = value
    return _UNPAIRED.sub("\ufffd", found) if kind is str else found


def _mesh_key(fields: _Object) -> MeshKey | None:
    """The mesh key, if there is one.

    ``null`` and ``""`` are malformed, not absent: Go's type reads them itself.
    """
    found: MeshKey | None = None
    for value in (value for key, value in fields if key == "meshkey"):
        try:
            found = MeshKey.from_hex(value if isinstance(value, str) else "")
        except KeyFormatError as exc:
            raise RemoteProtocolError("ClientInfo has a malformed mesh key") from exc
    return found
