"""STUN messages: vectors of Tailscale, of RFC 5769, and written by hand."""

from __future__ import annotations

import ipaddress
import struct
import zlib

import pytest
from hypothesis import given, strategies as st

from tailnet.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    UnknownAttributesError,
)
from tailnet.stun.messages import (
    BindingRequest,
    BindingResponse,
    IPAddress,
    decode_binding_request,
    decode_binding_response,
    encode_binding_request,
    encode_binding_response,
    encode_unknown_attributes,
    looks_like_stun,
)

TX_ID = bytes(range(1, 13))
COOKIE = "2112a442"
V4 = ipaddress.IPv4Address("192.0.2.1")
V6 = ipaddress.IPv6Address("2001:db8::1")
MAPPED = ipaddress.IPv6Address("::ffff:192.0.2.1")

TAILSCALE_REQUEST = bytes.fromhex(
    "0001 0014" + COOKIE + TX_ID.hex() + "8022 0008 7461696c6e6f64658028 0004 b32c370f"
)
V4_RESPONSE = bytes.fromhex(
    "0101 000c" + COOKIE + TX_ID.hex() + "0020 0008 00 01 a147 e112a643"
)
V6_RESPONSE = bytes.fromhex(
    "0101 0018" + COOKIE + TX_ID.hex() + "0020 0014 00 02 a147"
    "0113a9fa 0102030405060708090a0b0d"
)

# RFC 5769 2.1: a request of an ICE agent, with PRIORITY and ICE-CONTROLLED,
# and the response of 2.2.
RFC_REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae"
    "802200105354554e207465737420636c69656e74"
    "002400046e0001ff"
    "80290008932ff9b151263b36"
    "000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004e57a3bcf"
)
RFC_RESPONSE = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)


def message(body: str, *, kind: str = "0001", size: int | None = None) -> bytes:
    """A message with the given attributes, in hex."""
    raw = bytes.fromhex(body)
    length = len(raw) if size is None else size
    return bytes.fromhex(kind) + length.to_bytes(2, "big") + b"!\x12\xa4B" + TX_ID + raw


def fingerprinted(body: str) -> bytes:
    """A request whose last attribute is a good FINGERPRINT."""
    raw = message(body, size=len(bytes.fromhex(body)) + 8)
    return raw + struct.pack("!HHI", 0x8028, 4, zlib.crc32(raw) ^ 0x5354554E)


# -- requests ---------------------------------------------------------------


def test_tailscale_request() -> None:
    assert encode_binding_request(TX_ID) == TAILSCALE_REQUEST
    assert decode_binding_request(TAILSCALE_REQUEST) == BindingRequest(
        TX_ID, is_tailscale=True
    )


@pytest.mark.parametrize("tx_id", [b"", bytes(11), bytes(13)])
def test_transaction_id_has_12_bytes(tx_id: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="12 bytes"):
        encode_binding_request(tx_id)
    with pytest.raises(LocalProtocolError, match="12 bytes"):
        encode_binding_response(tx_id, V4, 1)
    with pytest.raises(LocalProtocolError, match="12 bytes"):
        encode_unknown_attributes(tx_id, [3])


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(message(""), id="bare"),
        pytest.param(message("8022 0003 61626300"), id="other software"),
        pytest.param(message("8022 0008 7461696c6e6f6465"), id="no fingerprint"),
        pytest.param(fingerprinted("8022 0003 61626300"), id="fingerprint"),
        pytest.param(fingerprinted("8022 0008 7461696c6e6f6444"), id="tailnodD"),
        pytest.param(message("c000 0002 abcd0000"), id="unknown, but optional"),
        pytest.param(message("0006 0001 61000000"), id="username"),
        pytest.param(
            message("0008 0014" + "00" * 20 + "0003 0004 00000006"),
            id="unknown behind the integrity",
        ),
    ],
)
def test_ordinary_requests(datagram: bytes) -> None:
    assert decode_binding_request(datagram) == BindingRequest(TX_ID, is_tailscale=False)


def test_tailscale_request_with_more_in_it() -> None:
    """Whatever else there is: derper answers, and so do we."""
    datagram = fingerprinted("0003 0004 00000006 8022 0008 7461696c6e6f6465")
    assert decode_binding_request(datagram).is_tailscale


def test_tailscale_request_with_a_wrong_length() -> None:
    """Go does not look at the length; the fingerprint covers it."""
    raw = message("8022 0008 7461696c6e6f6465", size=7)
    datagram = raw + struct.pack("!HHI", 0x8028, 4, zlib.crc32(raw) ^ 0x5354554E)
    assert decode_binding_request(datagram).is_tailscale


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(b"", id="empty"),
        pytest.param(message("")[:-1], id="short header"),
        pytest.param(b"\x40" + message("")[1:], id="top bits"),
        pytest.param(b"\x80" + message("")[1:], id="RTP"),
        pytest.param(message("").replace(b"!\x12\xa4B", b"!\x12\xa4C"), id="cookie"),
        pytest.param(message("", kind="0101"), id="response"),
        pytest.param(message("", kind="0011"), id="indication"),
        pytest.param(message("", kind="0003"), id="allocate"),
        pytest.param(message("8022"), id="half an attribute"),
        pytest.param(message("8022 0004 616263"), id="value cut off"),
        pytest.param(message("8022 0003 616263"), id="no padding"),
        pytest.param(message("8022 ffff 61626300"), id="lying length"),
        pytest.param(message("", size=4), id="lying header"),
        pytest.param(message("8022 0003 61626300", size=0), id="trailing bytes"),
        pytest.param(TAILSCALE_REQUEST[:-1] + b"\0", id="CRC"),
        pytest.param(message("8028 0004 00000000"), id="CRC alone"),
        pytest.param(message("8028 0002 abcd0000"), id="short CRC"),
        pytest.param(
            fingerprinted("8022 0008 7461696c6e6f6465") + bytes.fromhex("80220000"),
            id="fingerprint not last",
        ),
    ],
)
def test_not_a_request(datagram: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_binding_request(datagram)
    assert type(caught.value) is RemoteProtocolError


def test_request_that_asks_too_much() -> None:
    """CHANGE-REQUEST of NAT discovery, twice, and PADDING (RFC 5780)."""
    datagram = message("0003 0004 00000006 0003 0004 00000006 0026 0000")
    with pytest.raises(UnknownAttributesError, match="0x0003, 0x0026") as caught:
        decode_binding_request(datagram)
    assert (caught.value.tx_id, caught.value.types) == (TX_ID, (0x0003, 0x0026))


def test_request_of_rfc_5769_needs_ice() -> None:
    with pytest.raises(UnknownAttributesError) as caught:
        decode_binding_request(RFC_REQUEST)
    assert caught.value.types == (0x0024,)


def test_error_420_on_the_wire() -> None:
    assert (
        encode_unknown_attributes(TX_ID, (0x0003, 0x0026, 0x0024))
        == bytes.fromhex(
            "0111 0028"
            + COOKIE
            + TX_ID.hex()
            # ERROR-CODE 4 20 "Unknown Attribute"
            + "0009 0015 00000414 556e6b6e6f776e20417474726962757465 000000"
            "000a 0006 0003 0026 0024 0000"
        )
    )


def test_error_420_does_not_amplify() -> None:
    body = "".join(f"{number:04x}0000" for number in range(0x30, 0x7000))
    with pytest.raises(UnknownAttributesError) as caught:
        decode_binding_request(message(body[:60_000]))
    reply = encode_unknown_attributes(TX_ID, caught.value.types)
    assert len(reply) == 20 + 28 + 4 + 2 * 32


# -- responses --------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "wire"), [(V4, V4_RESPONSE), (V6, V6_RESPONSE), (MAPPED, V4_RESPONSE)]
)
def test_response_on_the_wire(ip: IPAddress, wire: bytes) -> None:
    assert encode_binding_response(TX_ID, ip, 32853) == wire


@pytest.mark.parametrize("port", [-1, 65536])
def test_response_with_an_impossible_port(port: int) -> None:
    with pytest.raises(LocalProtocolError, match="no port"):
        encode_binding_response(TX_ID, V4, port)


XOR_V4 = "0020 0008 0001 a147 e112a643"
PLAIN_V4 = "0001 0008 0001 0007 c6336401"


@pytest.mark.parametrize(
    ("datagram", "ip", "port"),
    [
        pytest.param(V4_RESPONSE, V4, 32853, id="IPv4"),
        pytest.param(V6_RESPONSE, V6, 32853, id="IPv6"),
        pytest.param(V4_RESPONSE + b"junk", V4, 32853, id="trailing bytes"),
        pytest.param(
            message("8020 0008 0001 a147 e112a643", kind="0101"),
            V4,
            32853,
            id="alternative number",
        ),
        pytest.param(
            message(PLAIN_V4, kind="0101"),
            ipaddress.IPv4Address("198.51.100.1"),
            7,
            id="MAPPED-ADDRESS",
        ),
        pytest.param(message(XOR_V4 + PLAIN_V4, kind="0101"), V4, 32853, id="xor 1st"),
        pytest.param(message(PLAIN_V4 + XOR_V4, kind="0101"), V4, 32853, id="xor 2nd"),
        pytest.param(
            message("0001 0014 0002 0007" + MAPPED.packed.hex(), kind="0101"),
            V4,
            7,
            id="v4-mapped, as derper sends it",
        ),
        pytest.param(
            message("0020 000c 0001 a147 e112a643 ffffffff", kind="0101"),
            V4,
            32853,
            id="long value",
        ),
    ],
)
def test_response_is_read(datagram: bytes, ip: IPAddress, port: int) -> None:
    assert decode_binding_response(datagram) == BindingResponse(TX_ID, ip, port)


def test_response_of_rfc_5769() -> None:
    tx_id = bytes.fromhex("b7e7a701bc34d686fa87dfae")
    assert decode_binding_response(RFC_RESPONSE) == BindingResponse(tx_id, V4, 32853)


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(b"", id="empty"),
        pytest.param(TAILSCALE_REQUEST, id="request"),
        pytest.param(V4_RESPONSE[:-1], id="cut off"),
        pytest.param(message("", kind="0101"), id="no address"),
        pytest.param(message("0020 0003 00010000", kind="0101"), id="no port"),
        pytest.param(message("0020 0008 0003 a147 e112a643", kind="0101"), id="family"),
        pytest.param(message("0020 0008 0002 a147 e112a643", kind="0101"), id="short"),
        pytest.param(message(XOR_V4 + "00", kind="0101"), id="broken attribute"),
        pytest.param(message(XOR_V4 + "0001 0000", kind="0101"), id="bad fallback"),
        pytest.param(encode_unknown_attributes(TX_ID, [3]), id="error response"),
    ],
)
def test_not_a_response(datagram: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_binding_response(datagram)


@given(
    tx_id=st.binary(min_size=12, max_size=12),
    ip=st.ip_addresses(),
    port=st.integers(0, 65535),
)
def test_responses_come_back(tx_id: bytes, ip: IPAddress, port: int) -> None:
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    wire = encode_binding_response(tx_id, ip, port)
    assert len(wire) == (32 if ip.version == 4 else 44)
    assert decode_binding_response(wire) == BindingResponse(tx_id, ip, port)


@given(tx_id=st.binary(min_size=12, max_size=12))
def test_requests_come_back(tx_id: bytes) -> None:
    wire = encode_binding_request(tx_id)
    assert len(wire) == 40
    assert decode_binding_request(wire) == BindingRequest(tx_id, is_tailscale=True)


@given(
    data=st.one_of(
        st.binary(max_size=80),
        st.binary(max_size=60).map(lambda body: message(body.hex())),
        st.binary(max_size=60).map(lambda body: message(body.hex(), kind="0101")),
    )
)
def test_any_bytes_decode_or_raise_protocol_error(data: bytes) -> None:
    for decode in (decode_binding_request, decode_binding_response):
        try:
            decode(data)
        except RemoteProtocolError:
            pass
        else:
            assert looks_like_stun(data)
