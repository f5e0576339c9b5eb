"""STUN binding requests and responses: datagrams in, datagrams out.

Wire format: RFC 8489, and what Tailscale makes of it in ``net/stun/stun.go``.
A message is::

    2 bytes   type; the top two bits are zero
    2 bytes   length of the attributes
    4 bytes   magic cookie
    12 bytes  transaction id
    n bytes   attributes, each: 2 bytes type, 2 bytes length, value, padding
              up to a multiple of 4

derper answers Tailscale's own requests only. This module reads those as
derper does, and ordinary binding requests by the rules of the RFC.

Conventions: ``decode_*`` returns or raises RemoteProtocolError, whatever the
bytes; ``encode_*`` raises LocalProtocolError. A transaction id is 12 bytes.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from tailnet.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    UnknownAttributesError,
)

__all__ = (
    "TX_ID_LEN",
    "BindingRequest",
    "BindingResponse",
    "IPAddress",
    "decode_binding_request",
    "decode_binding_response",
    "encode_binding_request",
    "encode_binding_response",
    "encode_unknown_attributes",
    "looks_like_stun",
)

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

TX_ID_LEN: Final = 12

# RFC 8489 5: type, length, magic cookie, transaction id.
HEADER: Final = struct.Struct("!HHI12s")
MAGIC_COOKIE: Final = 0x2112A442

# RFC 8489 5: class and method together.
BINDING_REQUEST: Final = 0x0001
BINDING_SUCCESS: Final = 0x0101
BINDING_ERROR: Final = 0x0111

# RFC 8489 18.3.
MAPPED_ADDRESS: Final = 0x0001
MESSAGE_INTEGRITY: Final = 0x0008
ERROR_CODE: Final = 0x0009
UNKNOWN_ATTRIBUTES: Final = 0x000A
MESSAGE_INTEGRITY_SHA256: Final = 0x001C
XOR_MAPPED_ADDRESS: Final = 0x0020
SOFTWARE: Final = 0x8022
FINGERPRINT: Final = 0x8028

# stun.go attrXorMappedAddressAlt: some servers use this number.
XOR_MAPPED_ADDRESS_ALT: Final = 0x8020

# RFC 8489 14: attributes below this must be understood. These are the ones it
# defines; in a binding request without authentication they mean nothing.
COMPREHENSION_OPTIONAL: Final = 0x8000
UNDERSTOOD: Final = frozenset(
    {
        MAPPED_ADDRESS,
        0x0006,  # USERNAME
        MESSAGE_INTEGRITY,
        ERROR_CODE,
        UNKNOWN_ATTRIBUTES,
        0x0014,  # REALM
        0x0015,  # NONCE
        MESSAGE_INTEGRITY_SHA256,
        0x001D,  # PASSWORD-ALGORITHM
        0x001E,  # USERHASH
        XOR_MAPPED_ADDRESS,
    }
)

# stun.go software: how derper knows its own.
TAILSCALE_SOFTWARE: Final = b"tailnode"

# RFC 8489 14.7: "STUN", so that the CRC differs from others in the datagram.
FINGERPRINT_XOR: Final = 0x5354554E
_FINGERPRINT_ATTRIBUTE: Final = struct.Struct("!HHI")

_ATTRIBUTE: Final = struct.Struct("!HH")
_FAMILY_IPV4: Final = 1
_FAMILY_IPV6: Final = 2
_ADDRESS_HEADER: Final = struct.Struct("!xBH")

# RFC 8489 14.8: 420, class and number apart, and its recommended words.
_UNKNOWN_ATTRIBUTE_ERROR: Final = b"\x00\x00\x04\x14Unknown Attribute"

# Ours: as many types as a reply to a hostile request should repeat.
MAX_UNKNOWN_ATTRIBUTES: Final = 32


@dataclass(frozen=True, slots=True)
class BindingRequest:
    """Someone asks how its address looks from here.

    Attributes:
        tx_id: 12 bytes, to be repeated in the response.
        is_tailscale: derper would answer this one too.
    """

    tx_id: bytes
    is_tailscale: bool


@dataclass(frozen=True, slots=True)
class BindingResponse:
    """How the sender of a binding request looks from the other side.

    Attributes:
        tx_id: 12 bytes, of the request.
        ip: The sender's address, IPv4 unmapped.
        port: Its port.
    """

    tx_id: bytes
    ip: IPAddress
    port: int


def looks_like_stun(datagram: bytes) -> bool:
    """Whether the header is one of STUN (stun.go Is)."""
    return (
        len(datagram) >= HEADER.size
        and not datagram[0] & 0xC0
        and int.from_bytes(datagram[4:8], "big") == MAGIC_COOKIE
    )


# -- requests ---------------------------------------------------------------


def encode_binding_request(tx_id: bytes) -> bytes:
    """Encode the request that derper answers, byte for byte Tailscale's.

    Args:
        tx_id: 12 random bytes.

    Raises:
        LocalProtocolError: Not 12 bytes.
    """
    software = _encode_attribute(SOFTWARE, TAILSCALE_SOFTWARE)
    size = len(software) + _FINGERPRINT_ATTRIBUTE.size
    message = _header(BINDING_REQUEST, tx_id, size) + software
    return message + _FINGERPRINT_ATTRIBUTE.pack(FINGERPRINT, 4, _fingerprint(message))


def decode_binding_request(datagram: bytes) -> BindingRequest:
    """Interpret a datagram that should be a binding request.

    Raises:
        UnknownAttributesError: A good request, but it has attributes that the
            server would have to understand. It may be answered with
            :func:`encode_unknown_attributes`.
        RemoteProtocolError: Anything else; not to be answered.
    """
    if not looks_like_stun(datagram):
        raise RemoteProtocolError("the datagram is not STUN")
    message_type, size, _, tx_id = HEADER.unpack_from(datagram)
    if message_type != BINDING_REQUEST:
        raise RemoteProtocolError(f"STUN type {message_type:#06x} is no request")
    attributes = list(_attributes(datagram[HEADER.size :]))
    types = [attribute_type for attribute_type, _ in attributes]
    has_fingerprint = FINGERPRINT in types
    if has_fingerprint:
        _check_fingerprint(datagram, attributes)
    if has_fingerprint and (SOFTWARE, TAILSCALE_SOFTWARE) in attributes:
        # stun.go ParseBindingRequest looks at nothing else, the length in the
        # header included.
        return BindingRequest(tx_id, is_tailscale=True)
    if size != len(datagram) - HEADER.size:
        raise RemoteProtocolError(
            f"a STUN header says {size} bytes, "
            f"{len(datagram) - HEADER.size} bytes follow"
        )
    unknown = [
        attribute_type
        for attribute_type in _protected(types)
        if attribute_type < COMPREHENSION_OPTIONAL and attribute_type not in UNDERSTOOD
    ]
    if unknown:
        raise UnknownAttributesError(tx_id, tuple(dict.fromkeys(unknown)))
    return BindingRequest(tx_id, is_tailscale=False)


def _check_fingerprint(datagram: bytes, attributes: list[tuple[int, bytes]]) -> None:
    last_type, value = attributes[-1]
    if last_type != FINGERPRINT or len(value) != 4:
        raise RemoteProtocolError("a STUN fingerprint is not at the end")
    covered = datagram[: -_FINGERPRINT_ATTRIBUTE.size]
    if int.from_bytes(value, "big") != _fingerprint(covered):
        raise RemoteProtocolError("a STUN fingerprint is wrong")


def _protected(types: list[int]) -> list[int]:
    """RFC 8489 14.5: what follows a MESSAGE-INTEGRITY is to be ignored."""
    for index, attribute_type in enumerate(types):
        if attribute_type in (MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256):
            return types[:index]
    return types


# -- responses --------------------------------------------------------------


def encode_binding_response(tx_id: bytes, ip: IPAddress, port: int) -> bytes:
    """Encode a success response, byte for byte derper's.

    Args:
        tx_id: Of the request.
        ip: The source of the request. A v4-mapped address is sent as IPv4,
            which derper does not do on a dual-stack socket; Tailscale's
            parser takes either and others only this.
        port: The port it came from.

    Raises:
        LocalProtocolError: ``tx_id`` is not 12 bytes, or no such port.
    """
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if not 0 <= port < 1 << 16:
        raise LocalProtocolError(f"there is no port {port}")
    family = _FAMILY_IPV4 if ip.version == 4 else _FAMILY_IPV6
    value = _ADDRESS_HEADER.pack(family, port ^ (MAGIC_COOKIE >> 16))
    attribute = _encode_attribute(XOR_MAPPED_ADDRESS, value + _xor(ip.packed, tx_id))
    return _header(BINDING_SUCCESS, tx_id, len(attribute)) + attribute


def encode_unknown_attributes(tx_id: bytes, types: Iterable[int]) -> bytes:
    """Encode the error response 420 (RFC 8489 6.3.1).

    Args:
        tx_id: Of the request.
        types: The attributes that were not understood; at most 32 of them are
            named.

    Raises:
        LocalProtocolError: ``tx_id`` is not 12 bytes.
    """
    named = list(types)[:MAX_UNKNOWN_ATTRIBUTES]
    body = _encode_attribute(ERROR_CODE, _UNKNOWN_ATTRIBUTE_ERROR)
    body += _encode_attribute(
        UNKNOWN_ATTRIBUTES, struct.pack(f"!{len(named)}H", *named)
    )
    return _header(BINDING_ERROR, tx_id, len(body)) + body


def decode_binding_response(datagram: bytes) -> BindingResponse:
    """Interpret a success response, as stun.go ParseResponse does.

    Any server's will do: XOR-MAPPED-ADDRESS counts most, also under the wrong
    number, then MAPPED-ADDRESS; of several the last one.

    Raises:
        RemoteProtocolError: Anything else.
    """
    if not looks_like_stun(datagram):
        raise RemoteProtocolError("the datagram is not STUN")
    message_type, size, _, tx_id = HEADER.unpack_from(datagram)
    if message_type != BINDING_SUCCESS:
        raise RemoteProtocolError(f"STUN type {message_type:#06x} is no success")
    end = HEADER.size + size
    if end > len(datagram):
        raise RemoteProtocolError(f"a STUN message lacks {end - len(datagram)} bytes")
    best: tuple[IPAddress, int] | None = None
    fallback: tuple[IPAddress, int] | None = None
    for attribute_type, value in _attributes(datagram[HEADER.size : end]):
        if attribute_type in (XOR_MAPPED_ADDRESS, XOR_MAPPED_ADDRESS_ALT):
            raw, port = _decode_address(value)
            best = _unmapped(_xor(raw, tx_id)), port ^ (MAGIC_COOKIE >> 16)
        elif attribute_type == MAPPED_ADDRESS:
            raw, port = _decode_address(value)
            fallback = _unmapped(raw), port
    found = best or fallback
    if found is None:
        raise RemoteProtocolError("a STUN response has no address")
    return BindingResponse(tx_id, *found)


# -- parts ------------------------------------------------------------------


def _header(message_type: int, tx_id: bytes, size: int) -> bytes:
    if len(tx_id) != TX_ID_LEN:
        raise LocalProtocolError(
            f"a transaction id has {TX_ID_LEN} bytes, not {len(tx_id)}"
        )
    return HEADER.pack(message_type, size, MAGIC_COOKIE, tx_id)


def _fingerprint(message: bytes) -> int:
    """RFC 8489 14.7, of all that is in front of the attribute."""
    return zlib.crc32(message) ^ FINGERPRINT_XOR


def _encode_attribute(attribute_type: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return _ATTRIBUTE.pack(attribute_type, len(value)) + value + padding


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message: type and value."""
    start, end = 0, len(body)
    while start < end:
        value_start = start + _ATTRIBUTE.size
        if value_start > end:
            raise RemoteProtocolError("a STUN attribute is cut off")
        attribute_type, size = _ATTRIBUTE.unpack_from(body, start)
        start = value_start + size + -size % 4
        if start > end:
            raise RemoteProtocolError("a STUN attribute is cut off")
        yield attribute_type, body[value_start : value_start + size]


def _decode_address(value: bytes) -> tuple[bytes, int]:
    """RFC 8489 14.1: an address as it stands there, and a port."""
    if len(value) < _ADDRESS_HEADER.size:
        raise RemoteProtocolError("an address in a STUN response is cut off")
    family, port = _ADDRESS_HEADER.unpack_from(value)
    size = {_FAMILY_IPV4: 4, _FAMILY_IPV6: 16}.get(family)
    raw = value[_ADDRESS_HEADER.size :]
    if size is None or len(raw) < size:
        raise RemoteProtocolError("an address in a STUN response is malformed")
    return raw[:size], port


def _xor(raw: bytes, tx_id: bytes) -> bytes:
    """RFC 8489 14.2: so that no NAT on the way rewrites the address."""
    mask = MAGIC_COOKIE.to_bytes(4, "big") + tx_id
    return bytes(a ^ b for a, b in zip(raw, mask, strict=False))


def _unmapped(raw: bytes) -> IPAddress:
    if len(raw) == 4:
        return ipaddress.IPv4Address(raw)
    ip6 = ipaddress.IPv6Address(raw)
    return ip6.ipv4_mapped or ip6
