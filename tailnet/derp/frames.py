"""DERP frames: header and bodies, bytes in and bytes out, no I/O.

Wire format: tailscale ``derp/derp.go``, protocol version 2. A frame is::

    1 byte   frame type
    4 bytes  body length, unsigned big-endian, not counting these 5 bytes
    n bytes  body

Conventions of this module:

- ``decode_*`` takes bytes from the network. Whatever the bytes, it returns or
  raises RemoteProtocolError: never struct.error, IndexError or ValueError.
- ``encode_*`` takes our own values and raises LocalProtocolError if they
  cannot be put on the wire.
- Sizes are in bytes.

A frame that a side never expects is a value of type :class:`UnknownFrame`:
both Go ends skip those, and so must everyone.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tailnet.keys import KEY_LEN, NodePublic

__all__ = (
    "DISCO_MAGIC",
    "FRAME_HEADER",
    "KEEP_ALIVE",
    "MAGIC",
    "MAX_BODY_LEN",
    "MAX_CLIENT_INFO_LEN",
    "MAX_PACKET_SIZE",
    "MAX_PING_LEN",
    "MAX_SERVER_INFO_LEN",
    "MIN_DISCO_LEN",
    "PING_LEN",
    "PROTOCOL_VERSION",
    "ClientFrame",
    "ClosePeer",
    "ForwardPacket",
    "FrameType",
    "Health",
    "KeepAlive",
    "NotePreferred",
    "PeerGone",
    "PeerGoneReason",
    "PeerPresent",
    "PeerPresentFlags",
    "Ping",
    "Pong",
    "RawFrame",
    "RecvPacket",
    "Restarting",
    "SendPacket",
    "ServerFrame",
    "UnknownFrame",
    "WatchConns",
    "decode_client_frame",
    "decode_server_frame",
    "encode_close_peer",
    "encode_forward_packet",
    "encode_frame",
    "encode_health",
    "encode_note_preferred",
    "encode_peer_gone",
    "encode_peer_present",
    "encode_ping",
    "encode_pong",
    "encode_recv_packet",
    "encode_restarting",
    "encode_send_packet",
    "encode_watch_conns",
    "looks_like_disco",
)

FRAME_HEADER: Final = struct.Struct("!BI")

# derp.go protocolVersion: 2 is "received packets have src addrs".
PROTOCOL_VERSION: Final = 2

# derp.go magic: "DERP" and the key emoji, U+1F511.
MAGIC: Final = b"DERP\xf0\x9f\x94\x91"

# derp.go MaxPacketSize. Counts the packet alone: the keys in front of it make
# the body up to 64 bytes longer.
MAX_PACKET_SIZE: Final = 64 << 10

# The longest body that derp_client.go takes, whatever the frame type.
MAX_BODY_LEN: Final = 1 << 20

# derpserver.go recvClientKey: more than 256 KiB of ClientInfo is refused.
MAX_CLIENT_INFO_LEN: Final = 256 << 10

# derp_client.go parseServerInfo: maxLength, nonce and 1 MiB of box.
MAX_SERVER_INFO_LEN: Final = 24 + (1 << 20)

PING_LEN: Final = 8

# derpserver.go handleFramePing: "arbitrary, as future-proofing".
MAX_PING_LEN: Final = 1000

# disco.go Magic: "TS" and the speech balloon emoji, U+1F4AC.
DISCO_MAGIC: Final = b"TS\xf0\x9f\x92\xac"

# disco.go LooksLikeDiscoWrapper: magic, sender's key, nonce.
MIN_DISCO_LEN: Final = len(DISCO_MAGIC) + KEY_LEN + 24


class FrameType(enum.IntEnum):
    """First byte of a frame. Unlisted values are legal and must be skipped."""

    SERVER_KEY = 0x01  # 8 B magic + 32 B key (+ bytes of the future)
    CLIENT_INFO = 0x02  # 32 B key + 24 B nonce + box of JSON
    SERVER_INFO = 0x03  # 24 B nonce + box of JSON
    SEND_PACKET = 0x04  # 32 B destination node key + packet
    RECV_PACKET = 0x05  # 32 B source node key + packet
    KEEP_ALIVE = 0x06  # empty
    NOTE_PREFERRED = 0x07  # 1 B, whether this relay is the client's home
    PEER_GONE = 0x08  # 32 B key + 1 B reason
    PEER_PRESENT = 0x09  # 32 B key + 16 B IP + 2 B port + 1 B flags
    FORWARD_PACKET = 0x0A  # 32 B source + 32 B destination + packet
    WATCH_CONNS = 0x10  # empty
    CLOSE_PEER = 0x11  # 32 B key
    PING = 0x12  # 8 B, echoed back in a PONG
    PONG = 0x13  # 8 B
    HEALTH = 0x14  # UTF-8 text, empty means healthy
    RESTARTING = 0x15  # u32 reconnect in, u32 try for: milliseconds


class PeerGoneReason(enum.IntEnum):
    """Why a path to a peer is gone (derp.go PeerGoneReasonType)."""

    DISCONNECTED = 0x00
    NOT_HERE = 0x01


class PeerPresentFlags(enum.IntFlag):
    """What kind of client is present (derp.go PeerPresentFlags)."""

    REGULAR = 1
    MESH_PEER = 2
    PROBER = 4
    NOT_IDEAL = 8


class RawFrame(NamedTuple):
    """A whole frame whose body has not been interpreted."""

    type: int  # a FrameType, or a value newer than this code
    body: memoryview


@dataclass(frozen=True, slots=True)
class SendPacket:
    """Client to relay: carry ``packet`` to ``dst``."""

    dst: NodePublic
    packet: bytes


@dataclass(frozen=True, slots=True)
class RecvPacket:
    """Relay to client: ``packet`` came from ``src``."""

    src: NodePublic
    packet: bytes


@dataclass(frozen=True, slots=True)
class ForwardPacket:
    """Relay to relay: ``src``, a client of the sender, has sent to ``dst``."""

    src: NodePublic
    dst: NodePublic
    packet: bytes


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Relay to client, so that the connection is seen to live."""


@dataclass(frozen=True, slots=True)
class NotePreferred:
    """Client to relay: whether this relay is the client's home."""

    preferred: bool


@dataclass(frozen=True, slots=True)
class PeerGone:
    """Relay to client: there is no way to ``peer`` through this relay now.

    ``reason`` is a :class:`PeerGoneReason`, or a number newer than this code.
    """

    peer: NodePublic
    reason: int


@dataclass(frozen=True, slots=True)
class PeerPresent:
    """Relay to watcher: ``peer`` is connected here.

    Attributes:
        peer: Its node key.
        ip: Its IP address, IPv4 unmapped; None if the relay does not tell.
        port: Its port; 0 if the relay does not tell.
        flags: Zero from a relay older than the field.
    """

    peer: NodePublic
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None
    port: int
    flags: PeerPresentFlags


@dataclass(frozen=True, slots=True)
class WatchConns:
    """Mesh peer to relay: tell me who comes and goes."""


@dataclass(frozen=True, slots=True)
class ClosePeer:
    """Mesh peer to relay: close the connections of ``peer``."""

    peer: NodePublic


@dataclass(frozen=True, slots=True)
class Ping:
    """Either way; to be answered with a Pong of the same 8 bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a Ping."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Health:
    """Relay to client: what is wrong with the connection; empty if nothing."""

    problem: str


@dataclass(frozen=True, slots=True)
class Restarting:
    """Relay to client: the relay is about to restart.

    Attributes:
        reconnect_in: Seconds to wait before connecting again, advisory.
        try_for: Seconds to keep trying here before looking elsewhere.
    """

    reconnect_in: float
    try_for: float


@dataclass(frozen=True, slots=True)
class UnknownFrame:
    """A frame that this side does not expect. Skip it."""

    type: int
    body_len: int


ServerFrame: TypeAlias = (
    RecvPacket
    | KeepAlive
    | PeerGone
    | PeerPresent
    | Ping
    | Pong
    | Health
    | Restarting
    | UnknownFrame
)
ClientFrame: TypeAlias = (
    SendPacket
    | ForwardPacket
    | NotePreferred
    | WatchConns
    | ClosePeer
    | Ping
    | UnknownFrame
)


def looks_like_disco(packet: bytes | memoryview) -> bool:
    """Whether a relay treats ``packet`` as disco (disco.go, same name)."""
    return len(packet) >= MIN_DISCO_LEN and bytes(packet[:6]) == DISCO_MAGIC


# -- splitting a byte stream ------------------------------------------------


# -- bodies, as the other side reads them -----------------------------------


def decode_server_frame(raw: RawFrame) -> ServerFrame | None:
    """Interpret a frame from a relay, as ``derp_client.go`` recvTimeout does.

    Returns:
        The frame; or None for one that Go logs and drops because its body is
        too short.
    """
    frame_type, body = raw
    size = len(body)
    match frame_type:
        case FrameType.RECV_PACKET:
            if size < KEY_LEN:
                return None
            return RecvPacket(_key(body), bytes(body[KEY_LEN:]))
        case FrameType.KEEP_ALIVE:
            return KeepAlive()
        case FrameType.PEER_GONE:
            if size < KEY_LEN:
                return None
            # A relay older than the field sends the key alone.
            reason = body[KEY_LEN] if size > KEY_LEN else PeerGoneReason.DISCONNECTED
            return PeerGone(_key(body), reason)
        case FrameType.PEER_PRESENT:
            return None if size < KEY_LEN else _decode_peer_present(body)
        case FrameType.PING:
            return None if size < PING_LEN else Ping(bytes(body[:PING_LEN]))
        case FrameType.PONG:
            return None if size < PING_LEN else Pong(bytes(body[:PING_LEN]))
        case FrameType.HEALTH:
            return Health(bytes(body).decode("utf-8", "replace"))
        case FrameType.RESTARTING:
            if size < _RESTARTING.size:
                return None
            reconnect_in, try_for = _RESTARTING.unpack_from(body)
            return Restarting(reconnect_in / 1000, try_for / 1000)
        case _:
            return UnknownFrame(frame_type, size)


def decode_client_frame(raw: RawFrame) -> ClientFrame:
    """Interpret a frame from a client, as ``derpserver.go`` run does.

    Whether the client may send it (mesh frames) is for the caller to judge.

    Raises:
        RemoteProtocolError: A body of a size for which derper closes the
            connection.
    """
    frame_type, body = raw
    size = len(body)
    match frame_type:
        case FrameType.SEND_PACKET:
            if not KEY_LEN <= size <= KEY_LEN + MAX_PACKET_SIZE:
                raise _bad_size("SendPacket", size)
            return SendPacket(_key(body), bytes(body[KEY_LEN:]))
        case FrameType.NOTE_PREFERRED:
            if size != 1:
                raise _bad_size("NotePreferred", size)
            return NotePreferred(body[0] != 0)
        case FrameType.FORWARD_PACKET:
            if not 2 * KEY_LEN <= size <= 2 * KEY_LEN + MAX_PACKET_SIZE:
                raise _bad_size("ForwardPacket", size)
            return ForwardPacket(
                _key(body), _key(body[KEY_LEN:]), bytes(body[2 * KEY_LEN :])
            )
        case FrameType.WATCH_CONNS:
            if size != 0:
                raise _bad_size("WatchConns", size)
            return WatchConns()
        case FrameType.CLOSE_PEER:
            if size != KEY_LEN:
                raise _bad_size("ClosePeer", size)
            return ClosePeer(_key(body))
        case FrameType.PING:
            if not PING_LEN <= size <= MAX_PING_LEN:
                raise _bad_size("Ping", size)
            return Ping(bytes(body[:PING_LEN]))
        case _:
            return UnknownFrame(frame_type, size)


_RESTARTING: Final = struct.Struct("!II")
_PRESENT_ADDRESS: Final = struct.Struct("!16sH")


def _key(body: memoryview) -> NodePublic:
    return NodePublic(bytes(body[:KEY_LEN]))


def _bad_size(name: str, size: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"a {name} frame cannot have a {size}-byte body")


def _decode_peer_present(body: memoryview) -> PeerPresent:
    """derp_client.go: the address and then the flags are newer than the key."""
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None
    port = 0
    flags = PeerPresentFlags(0)
    address_end = KEY_LEN + _PRESENT_ADDRESS.size
    if len(body) >= address_end:
        raw_ip, port = _PRESENT_ADDRESS.unpack_from(body, KEY_LEN)
        if any(raw_ip):
            ip6 = ipaddress.IPv6Address(raw_ip)
            ip = ip6.ipv4_mapped or ip6
    if len(body) > address_end:
        flags = PeerPresentFlags(body[address_end])
    return PeerPresent(_key(body), ip, port, flags)


# -- writing ----------------------------------------------------------------


def encode_frame(frame_type: int, body: bytes) -> bytes:
    """Encode any frame: header and ``body``.

    Raises:
        LocalProtocolError: ``body`` is longer than MAX_BODY_LEN, or
            ``frame_type`` is more than a byte.
    """
    if not 0 <= frame_type < 1 << 8:
        raise LocalProtocolError(f"there is no frame type {frame_type}")
    if len(body) > MAX_BODY_LEN:
        raise LocalProtocolError(
            f"body of {len(body)} bytes, the limit is {MAX_BODY_LEN}"
        )
    return FRAME_HEADER.pack(frame_type, len(body)) + body


KEEP_ALIVE: Final = encode_frame(FrameType.KEEP_ALIVE, b"")


def encode_send_packet(dst: NodePublic, packet: bytes) -> bytes:
    """Encode a SendPacket frame.

    Raises:
        LocalProtocolError: ``packet`` is longer than MAX_PACKET_SIZE.
    """
    return _encode_packet(FrameType.SEND_PACKET, bytes(dst), packet)


def encode_recv_packet(src: NodePublic, packet: bytes) -> bytes:
    """Encode a RecvPacket frame.

    Raises:
        LocalProtocolError: ``packet`` is longer than MAX_PACKET_SIZE.
    """
    return _encode_packet(FrameType.RECV_PACKET, bytes(src), packet)


def encode_forward_packet(src: NodePublic, dst: NodePublic, packet: bytes) -> bytes:
    """Encode a ForwardPacket frame.

    Raises:
        LocalProtocolError: ``packet`` is longer than MAX_PACKET_SIZE.
    """
    return _encode_packet(FrameType.FORWARD_PACKET, bytes(src) + bytes(dst), packet)


def _encode_packet(frame_type: int, keys: bytes, packet: bytes) -> bytes:
    if len(packet) > MAX_PACKET_SIZE:
        raise LocalProtocolError(
            f"packet of {len(packet)} bytes, the limit is {MAX_PACKET_SIZE}"
        )
    header = FRAME_HEADER.pack(frame_type, len(keys) + len(packet))
    return b"".join((header, keys, packet))


def encode_note_preferred(*, preferred: bool) -> bytes:
    """Encode a NotePreferred frame."""
    return encode_frame(FrameType.NOTE_PREFERRED, b"\x01" if preferred else b"\x00")


def encode_peer_gone(peer: NodePublic, reason: int) -> bytes:
    """Encode a PeerGone frame.

    Args:
        peer: Who is gone.
        reason: A PeerGoneReason, or another byte.

    Raises:
        LocalProtocolError: ``reason`` is more than a byte.
    """
    if not 0 <= reason < 1 << 8:
        raise LocalProtocolError(f"there is no reason {reason}")
    return encode_frame(FrameType.PEER_GONE, bytes(peer) + bytes([reason]))


def encode_peer_present(frame: PeerPresent) -> bytes:
    """Encode a PeerPresent frame, 51 bytes of body as derper sends it.

    Raises:
        LocalProtocolError: The port or the flags do not fit.
    """
    ip6 = bytes(16)
    match frame.ip:
        case ipaddress.IPv4Address():
            ip6 = bytes(10) + b"\xff\xff" + frame.ip.packed
        case ipaddress.IPv6Address():
            ip6 = frame.ip.packed
    if not 0 <= frame.port < 1 << 16 or not 0 <= frame.flags < 1 << 8:
        raise LocalProtocolError(
            f"PeerPresent cannot carry port {frame.port} and flags {frame.flags:d}"
        )
    address = _PRESENT_ADDRESS.pack(ip6, frame.port)
    return encode_frame(
        FrameType.PEER_PRESENT, bytes(frame.peer) + address + bytes([frame.flags])
    )


def encode_watch_conns() -> bytes:
    """Encode a WatchConns frame."""
    return encode_frame(FrameType.WATCH_CONNS, b"")


def encode_close_peer(peer: NodePublic) -> bytes:
    """Encode a ClosePeer frame."""
    return encode_frame(FrameType.CLOSE_PEER, bytes(peer))


def encode_ping(data: bytes) -> bytes:
    """Encode a Ping frame.

    Args:
        data: 8 bytes that the Pong will carry.

    Raises:
        LocalProtocolError: Not 8 bytes.
    """
    return _encode_ping(FrameType.PING, data)


def encode_pong(data: bytes) -> bytes:
    """Encode a Pong frame; see :func:`encode_ping`."""
    return _encode_ping(FrameType.PONG, data)


def _encode_ping(frame_type: int, data: bytes) -> bytes:
    if len(data) != PING_LEN:
        raise LocalProtocolError(f"a Ping carries {PING_LEN} bytes, not {len(data)}")
    return encode_frame(frame_type, data)


def encode_health(problem: str) -> bytes:
    """Encode a Health frame.

    Args:
        problem: What is wrong, for people; empty if all is well again.

    Raises:
        LocalProtocolError: Longer than MAX_BODY_LEN, or no Unicode.
    """
    try:
        body = problem.encode()
    except UnicodeEncodeError:
        raise LocalProtocolError("a Health text is no Unicode") from None
    return encode_frame(FrameType.HEALTH, body)


def encode_restarting(reconnect_in: float, try_for: float) -> bytes:
    """Encode a Restarting frame.

    Args:
        reconnect_in: Seconds until the client should connect again.
        try_for: Seconds for which it should try this relay.

    Raises:
        LocalProtocolError: Negative, or more than 49 days.
    """
    try:
        body = _RESTARTING.pack(round(reconnect_in * 1000), round(try_for * 1000))
    except (struct.error, OverflowError, ValueError):  # the latter: inf and nan
        raise LocalProtocolError(
            f"Restarting cannot carry {reconnect_in} s and {try_for} s"
        ) from None
    return encode_frame(FrameType.RESTARTING, body)
