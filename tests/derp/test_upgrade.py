"""Upgrade heads, from the bytes that Go's client and derper exchange."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tailnet.derp.upgrade import (
    MAX_HEAD_LEN,
    ResponseHead,
    ResponseReader,
    UpgradeKind,
    UpgradeRequest,
    decode_upgrade_request,
    encode_upgrade_request,
    encode_upgrade_response,
    meta_cert_common_name,
    server_key_from_common_name,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tailnet.keys import NodePublic

HEX = "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13"
SERVER_KEY = NodePublic.from_hex(HEX)
SERVER_KEY_FRAME = bytes.fromhex("01 00000028 44455250f09f9491" + HEX)


def read_head(*chunks: bytes) -> ResponseHead | None:
    """Feed ``chunks`` one by one; stop at the head."""
    reader = ResponseReader()
    for chunk in chunks:
        if (head := reader.receive_data(chunk)) is not None:
            return head
    return None


# -- the client's request ---------------------------------------------------


def test_request_on_the_wire() -> None:
    assert encode_upgrade_request("derp.example:8443") == (
        b"GET /derp HTTP/1.1\r\n"
        b"Host: derp.example:8443\r\n"
        b"User-Agent: tailnet\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: DERP\r\n"
        b"\r\n"
    )


def test_request_with_everything() -> None:
    wire = encode_upgrade_request(
        "d", ideal_node="900a", fast_start=True, headers=[("X-Token", "s3cret")]
    )
    assert wire == (
        b"GET /derp HTTP/1.1\r\n"
        b"Host: d\r\n"
        b"User-Agent: tailnet\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: DERP\r\n"
        b"Ideal-Node: 900a\r\n"
        b"Derp-Fast-Start: 1\r\n"
        b"X-Token: s3cret\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize(
    ("host", "header"),
    [
        ("a\r\nX-Injected: 1", ("X", "y")),
        ("a", ("X", "y\r\nX-Injected: 1")),
        ("a", ("X Y", "z")),
        ("a", ("X", "\N{SNOWMAN}")),
    ],
)
def test_request_refuses_what_would_break_the_head(
    host: str, header: tuple[str, str]
) -> None:
    with pytest.raises(LocalProtocolError):
        encode_upgrade_request(host, headers=[header])


# -- what the relay makes of a request --------------------------------------


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ([(b"upgrade", b"DERP")], UpgradeKind.DERP),
        ([(b"Upgrade", b"derp")], UpgradeKind.DERP),
        ([(b"UPGRADE", b"DeRp")], UpgradeKind.DERP),
        ([(b"Upgrade", b"WebSocket")], UpgradeKind.RAW_DERP),
        (
            [(b"upgrade", b"websocket"), (b"Sec-WebSocket-Protocol", b"derp")],
            UpgradeKind.WEBSOCKET,
        ),
        (
            [(b"upgrade", b"websocket"), (b"sec-websocket-protocol", b"a, xderp")],
            UpgradeKind.WEBSOCKET,
        ),
        # strings.Contains is case-sensitive, and Get sees the first line only.
        (
            [(b"upgrade", b"websocket"), (b"sec-websocket-protocol", b"DERP")],
            UpgradeKind.RAW_DERP,
        ),
        (
            [
                (b"upgrade", b"websocket"),
                (b"sec-websocket-protocol", b"chat"),
                (b"sec-websocket-protocol", b"derp"),
            ],
            UpgradeKind.RAW_DERP,
        ),
        # The whole value counts, not a token of a list.
        ([(b"upgrade", b"derp, websocket")], UpgradeKind.NONE),
        ([(b"upgrade", b"h2c"), (b"upgrade", b"derp")], UpgradeKind.NONE),
        ([(b"connection", b"Upgrade")], UpgradeKind.NONE),
        ([], UpgradeKind.NONE),
    ],
)
def test_kind_of_request(headers: list[tuple[bytes, bytes]], kind: UpgradeKind) -> None:
    assert decode_upgrade_request(headers) == UpgradeRequest(kind)


def test_fast_start_and_ideal_node() -> None:
    request = decode_upgrade_request(
        [(b"upgrade", b"DERP"), (b"derp-fast-start", b"1"), (b"ideal-node", b"1a")]
    )
    assert request == UpgradeRequest(UpgradeKind.DERP, fast_start=True, ideal_node="1a")


@pytest.mark.parametrize("value", [b"", b"0", b"true", b"11"])
def test_fast_start_is_exactly_one(value: bytes) -> None:
    headers = [(b"upgrade", b"DERP"), (b"derp-fast-start", value)]
    assert not decode_upgrade_request(headers).fast_start


def test_response_on_the_wire() -> None:
    assert encode_upgrade_response(SERVER_KEY) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: DERP\r\n"
        b"Connection: Upgrade\r\n"
        b"Derp-Version: 2\r\n"
        b"Derp-Public-Key: " + HEX.encode() + b"\r\n"
        b"\r\n"
    )


# -- the client reads the answer --------------------------------------------


def test_reads_101_and_keeps_what_follows() -> None:
    wire = encode_upgrade_response(SERVER_KEY) + SERVER_KEY_FRAME
    head = read_head(wire)
    assert head == ResponseHead(
        status=101,
        reason="Switching Protocols",
        headers=(
            (b"upgrade", b"DERP"),
            (b"connection", b"Upgrade"),
            (b"derp-version", b"2"),
            (b"derp-public-key", HEX.encode()),
        ),
        rest=SERVER_KEY_FRAME,
    )


def test_reads_one_byte_at_a_time() -> None:
    wire = encode_upgrade_response(SERVER_KEY)
    head = read_head(*(wire[i : i + 1] for i in range(len(wire))))
    assert head is not None
    assert (head.status, head.rest) == (101, b"")


def test_interim_answers_are_skipped() -> None:
    wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n"
    assert read_head(wire) is None
    head = read_head(wire + encode_upgrade_response(SERVER_KEY))
    assert head is not None
    assert head.status == 101


def test_refusal_keeps_the_beginning_of_its_body() -> None:
    head = read_head(
        b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 33\r\n\r\n"
        b"DERP requires connection upgrade"
    )
    assert head is not None
    assert (head.status, head.reason) == (426, "Upgrade Required")
    assert head.rest == b"DERP requires connection upgrade"


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc Nope\r\n\r\n",
        b"\x01\x00\x00\x00\x28DERP",
        b"HTTP/1.1 200 OK\r\nbad header line\r\n\r\n",
    ],
)
def test_not_http(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not HTTP"):
        read_head(wire)


@pytest.mark.parametrize(
    "wire", [b"", b"HTTP/1.1 101 Swi", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
def test_closed_before_the_end_of_the_head(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="closed"):
        read_head(*([wire] if wire else []), b"")


def head_of(size: int) -> bytes:
    """A 101 whose head has exactly ``size`` bytes."""
    start, end = b"HTTP/1.1 101 Switching Protocols\r\nX: ", b"\r\n\r\n"
    return start + b"y" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_longest_head(step: int) -> None:
    wire = head_of(MAX_HEAD_LEN) + bytes(100_000)
    head = read_head(*(wire[i : i + step] for i in range(0, len(wire), step)))
    assert head is not None

    wire = head_of(MAX_HEAD_LEN + 1)
    with pytest.raises(RemoteProtocolError, match="more than 16384 bytes"):
        read_head(*(wire[i : i + step] for i in range(0, len(wire), step)))


def test_endless_interim_answers_end() -> None:
    reader = ResponseReader()
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    for _ in range(MAX_HEAD_LEN // len(interim)):
        assert reader.receive_data(interim) is None
    with pytest.raises(RemoteProtocolError, match="more than 16384 bytes"):
        reader.receive_data(interim)


def test_endless_header_ends_before_it_arrives() -> None:
    reader = ResponseReader()
    assert reader.receive_data(b"HTTP/1.1 101 X\r\nA: ") is None
    for _ in range(16):
        assert reader.receive_data(b"y" * 1000) is None
    with pytest.raises(RemoteProtocolError, match="more than 16384 bytes"):
        reader.receive_data(b"y" * 1000)


@given(
    data=st.one_of(
        st.binary(max_size=80),
        st.builds(
            lambda a, b: b"HTTP/1.1 " + a + b"\r\n" + b + b"\r\n\r\nrest",
            st.sampled_from([b"101 X", b"200", b"100 C", b"4", b"426 \xff"]),
            st.sampled_from([b"", b"A: b", b"A:b\r\n c", b"A b", b"\x00:"]),
        ),
    )
)
def test_any_bytes_make_a_head_or_a_protocol_error(data: bytes) -> None:
    """One chunk and one byte at a time agree up to ``rest``."""

    def outcome(*chunks: bytes) -> tuple[object, ...]:
        try:
            head = read_head(*chunks)
        except RemoteProtocolError:
            return ("error",)
        return (head and (head.status, head.reason, head.headers),)

    if data:
        single = [data[i : i + 1] for i in range(len(data))]
        assert outcome(data) == outcome(*single)


# -- fast start -------------------------------------------------------------


def test_meta_certificate_names_the_key() -> None:
    name = meta_cert_common_name(SERVER_KEY)
    assert name == "derpkey" + HEX
    assert len(name) == 71
    assert server_key_from_common_name(name, 2) == SERVER_KEY


@pytest.mark.parametrize(
    ("common_name", "serial"),
    [
        ("derp.example", 2),
        ("Derpkey" + HEX, 2),
        ("derpkey", 2),
        ("derpkey" + HEX[:-1], 2),
        ("derpkey" + HEX + "0", 2),
        ("derpkey" + HEX[:-1] + "g", 2),
        ("derpkey" + "0" * 64, 2),
        ("derpkey" + HEX, 0),
        ("derpkey" + HEX, -1),
        ("derpkey" + HEX, 256),
    ],
)
def test_other_certificates_are_no_hint(common_name: str, serial: int) -> None:
    assert server_key_from_common_name(common_name, serial) is None


def test_version_of_the_hint_may_be_newer() -> None:
    name = meta_cert_common_name(SERVER_KEY)
    assert server_key_from_common_name(name.upper().replace("DERPKEY", "derpkey"), 255)
