"""Fuzz targets of STUN, DERP maps, keys and certificates."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from tailnet.derp.certificates import (
    check_certificate_name,
    check_pinned_certificate,
    find_meta_key,
)
from tailnet.derp.derpmap import decode_derp_map, encode_derp_map
from tailnet.derp.upgrade import meta_cert_common_name, server_key_from_common_name
from tailnet.errors import (
    DERPMapError,
    KeyFormatError,
    RemoteProtocolError,
    UnknownAttributesError,
)
from tailnet.keys import (
    KEY_LEN,
    NONCE_LEN,
    DiscoPrivate,
    DiscoPublic,
    MeshKey,
    NodePrivate,
    NodePublic,
)
from tailnet.stun.messages import (
    decode_binding_request,
    decode_binding_response,
    encode_binding_request,
    encode_binding_response,
    encode_unknown_attributes,
    looks_like_stun,
)
from tests.fuzz.common import CLIENT, SERVER

__all__ = ("certificates", "derp_map", "keys", "stun")

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def stun(data: bytes) -> None:
    """A datagram to the responder, and one to a client."""
    try:
        request = decode_binding_request(data)
    except UnknownAttributesError as exc:
        wire = encode_unknown_attributes(exc.tx_id, exc.types)
        assert looks_like_stun(wire)
        # At most 48 bytes more than came: no use for an amplifier.
        assert len(wire) <= len(data) + 48
        assert len(wire) % 4 == 0
    except RemoteProtocolError:
        pass
    else:
        assert looks_like_stun(data)
        if request.is_tailscale:
            again = decode_binding_request(encode_binding_request(request.tx_id))
            assert again == request
    try:
        response = decode_binding_response(data)
    except RemoteProtocolError:
        return
    wire = encode_binding_response(response.tx_id, response.ip, response.port)
    assert decode_binding_response(wire) == response


def derp_map(data: bytes) -> None:
    """A DERP map from a server or a file."""
    try:
        decoded = decode_derp_map(data)
    except DERPMapError:
        return
    wire = encode_derp_map(decoded)
    assert decode_derp_map(wire) == decoded
    assert encode_derp_map(decode_derp_map(wire)) == wire
    try:
        decoded.validate()
    except DERPMapError as exc:
        if not str(exc).startswith("region "):
            raise AssertionError("names no region") from exc


def keys(data: bytes) -> None:
    """Texts of keys, boxes, and common names of certificates."""
    text = data.decode("latin-1")
    for key_class in (NodePublic, NodePrivate, DiscoPublic, DiscoPrivate, MeshKey):
        for parse in (key_class.from_text, key_class.from_hex):
            try:
                key = parse(text)
            except KeyFormatError as exc:
                if len(text) >= 40 and text in str(exc):
                    raise AssertionError("quotes what may be a secret") from exc
            else:
                assert bytes(key).hex() in text.lower()
    named = server_key_from_common_name(text, 2)
    if named is not None:
        assert meta_cert_common_name(named) == text[:7] + text[7:].lower()
    try:
        cleartext = SERVER.open_from(CLIENT.public(), data)
    except RemoteProtocolError:
        pass
    else:
        nonce = data[:NONCE_LEN]
        assert CLIENT.seal_to(SERVER.public(), cleartext, nonce=nonce) == data
    peer = NodePublic(data[:KEY_LEN].ljust(KEY_LEN, b"\0"))
    try:
        sealed = SERVER.seal_to(peer, data)
    except RemoteProtocolError:
        return
    assert len(sealed) == len(data) + 40


def certificates(data: bytes) -> None:
    """Certificates as a relay sends them; DER, back to back by two lengths."""
    cut = data[0] * len(data) // 256 if data else 0
    for chain in ([data], [data[1:cut], data[cut:]]):
        pin = hashlib.sha256(chain[0]).hexdigest()
        try:
            find_meta_key(chain)
        except RemoteProtocolError:
            pass
        try:
            check_certificate_name(chain[-1], "derp.example")
        except RemoteProtocolError:
            pass
        try:
            check_pinned_certificate(chain, pin, server_name="127.0.0.1", now=NOW)
        except RemoteProtocolError:
            pass
