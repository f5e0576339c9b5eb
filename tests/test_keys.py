"""Keys: their texts, their boxes, and what they do not show."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, strategies as st

from tailnet.errors import KeyFormatError, RemoteProtocolError
from tailnet.keys import (
    KEY_LEN,
    DiscoPrivate,
    DiscoPublic,
    MeshKey,
    NodePrivate,
    NodePublic,
)

# Vectors computed with libsodium from outside this project.
SERVER = NodePrivate.from_hex("10" + "11" * 30 + "51")
SERVER_HEX = "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13"
CLIENT = NodePrivate.from_hex("20" + "22" * 30 + "62")
CLIENT_HEX = "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20"
DISCO_A = DiscoPrivate.from_hex("30" + "33" * 30 + "73")
DISCO_A_HEX = "7b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b14"
DISCO_B = DiscoPrivate.from_hex("40" + "44" * 31)
DISCO_B_HEX = "ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6b"

# A disco Ping from A to B: type 1, version 0, transaction id 01 to 0c, and the
# node key of the client.
DISCO_PING = bytes.fromhex("0100 0102030405060708090a0b0c" + CLIENT_HEX)
DISCO_NONCE = bytes(range(24))
DISCO_SEALED = DISCO_NONCE + bytes.fromhex(
    "856a16a5422985b3b3d4a5a11d4e2cf60b2ab5b6b0be4a2331697278faf4f403b5ec2b41dd77"
    "a785fb57deb19b723cef4362cde627db62c183624ed9b372"
)

KEY_CLASSES = [NodePublic, NodePrivate, DiscoPublic, DiscoPrivate, MeshKey]
SECRET_CLASSES = [NodePrivate, DiscoPrivate, MeshKey]

# RFC 7748 leaves these to the implementation; libsodium will not use them.
LOW_ORDER_POINTS = [
    "00" * 32,
    "01" + "00" * 31,
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
]


# -- text -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (NodePublic.from_hex(SERVER_HEX), "nodekey:" + SERVER_HEX),
        (DiscoPublic.from_hex(SERVER_HEX), "discokey:" + SERVER_HEX),
    ],
)
def test_text_of_public_keys(key: NodePublic | DiscoPublic, text: str) -> None:
    assert str(key) == text
    assert type(key).from_text(text) == key
    prefix, _, digits = text.partition(":")
    assert type(key).from_text(f"{prefix}:{digits.upper()}") == key
    assert key.hex == digits
    assert repr(key) == f"{type(key).__name__}.from_text({text!r})"


@pytest.mark.parametrize(
    ("key_class", "prefix"),
    [(NodePrivate, "privkey:"), (DiscoPrivate, "privkey:"), (MeshKey, "")],
)
def test_text_of_secrets(
    key_class: type[NodePrivate | DiscoPrivate | MeshKey], prefix: str
) -> None:
    text = prefix + SERVER_HEX
    key = key_class.from_text(text)
    assert key.to_text() == text
    assert key == key_class.from_hex(SERVER_HEX)


def test_short_forms_of_logs() -> None:
    assert NodePublic.from_hex(CLIENT_HEX).short == "[D6poT]"
    assert DiscoPublic.from_hex(DISCO_A_HEX).short == "d:7b0d47d93427f831"


@pytest.mark.parametrize("around", ["{}", " {}\n", "\t{}\r\n"])
def test_mesh_key_comes_from_a_file(around: str) -> None:
    assert MeshKey.from_text(around.format("ab" * 32)) == MeshKey(b"\xab" * 32)


@pytest.mark.parametrize("key_class", KEY_CLASSES)
@pytest.mark.parametrize(
    "digits",
    [
        "",
        "ab" * 31,
        "ab" * 33,
        "ab" * 31 + "a",
        "ab" * 31 + "ag",
        # bytes.fromhex takes these; Go does not.
        "ab " * 21 + "a",
        " " + "ab" * 31 + "a",
        "ab" * 31 + "a\n",
        "0x" + "ab" * 31,
        "+" + "ab" * 31 + "a",
        # str.isalnum and int() take other digits too.
        "\N{ARABIC-INDIC DIGIT ONE}" * 64,
        "\N{FULLWIDTH DIGIT ONE}" * 64,
    ],
)
def test_wrong_digits(key_class: type[NodePublic], digits: str) -> None:
    with pytest.raises(KeyFormatError, match="64 hex digits"):
        key_class.from_hex(digits)


@pytest.mark.parametrize(
    ("key_class", "text"),
    [
        (NodePublic, SERVER_HEX),
        (NodePublic, "privkey:" + SERVER_HEX),
        (NodePublic, "NODEKEY:" + SERVER_HEX),
        (NodePublic, " nodekey:" + SERVER_HEX),
        (NodePrivate, "nodekey:" + SERVER_HEX),
        (NodePrivate, SERVER_HEX),
        (DiscoPublic, "nodekey:" + SERVER_HEX),
        (MeshKey, "nodekey:" + SERVER_HEX),
    ],
)
def test_wrong_prefix(key_class: type[NodePublic], text: str) -> None:
    with pytest.raises(KeyFormatError):
        key_class.from_text(text)


@pytest.mark.parametrize("key_class", SECRET_CLASSES)
@pytest.mark.parametrize("digits", ["c0ffee" * 10 + "c0ffe", "c0ffee" * 10 + "c0fg"])
def test_errors_never_quote_the_text(key_class: type[NodePrivate], digits: str) -> None:
    for text in (digits, "privkey:" + digits):
        with pytest.raises(KeyFormatError) as caught:
            key_class.from_text(text)
        assert "c0ffee" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("size", [0, 31, 33])
@pytest.mark.parametrize("key_class", KEY_CLASSES)
def test_keys_have_32_bytes(key_class: type[NodePublic], size: int) -> None:
    with pytest.raises(KeyFormatError, match=f"32 bytes, this one has {size}"):
        key_class(bytes(size))


@given(text=st.text(max_size=80) | st.text("0123456789abcdefABCDEF:nodky", max_size=90))
def test_any_text_parses_or_raises_key_format_error(text: str) -> None:
    for key_class in (NodePublic, NodePrivate, DiscoPublic, MeshKey):
        for parse in (key_class.from_text, key_class.from_hex):
            try:
                key = parse(text)
            except KeyFormatError:
                continue
            assert bytes(key).hex() in text.lower()


@given(raw=st.binary(min_size=32, max_size=32))
def test_keys_come_back(raw: bytes) -> None:
    assert bytes(NodePublic.from_text(str(NodePublic(raw)))) == raw
    assert bytes(DiscoPublic.from_text(str(DiscoPublic(raw)))) == raw
    assert bytes(NodePrivate.from_text(NodePrivate(raw).to_text())) == raw
    assert bytes(MeshKey.from_text(MeshKey(raw).to_text())) == raw


# -- kinds ------------------------------------------------------------------


def test_equality_is_by_kind_and_bytes() -> None:
    raw = b"\x07" * KEY_LEN
    keys = [key_class(raw) for key_class in KEY_CLASSES]
    for i, one in enumerate(keys):
        for j, other in enumerate(keys):
            assert (one == other) == (i == j)
        assert one != type(one)(b"\x08" * KEY_LEN)
        assert one != raw


def test_public_keys_are_dictionary_keys_and_secrets_are_not() -> None:
    raw = b"\x07" * KEY_LEN
    assert {NodePublic(raw): 1, DiscoPublic(raw): 2}[NodePublic(raw)] == 1
    for key_class in SECRET_CLASSES:
        with pytest.raises(TypeError, match="unhashable"):
            hash(key_class(raw))


@pytest.mark.parametrize("key_class", SECRET_CLASSES)
def test_secrets_do_not_show(key_class: type[NodePrivate]) -> None:
    key = key_class(b"\xab" * KEY_LEN)
    for shown in (str(key), repr(key), f"{key}", f"{[key]}", f"{key!r:>20}"):
        assert "abab" not in shown.lower()
        assert "\\xab" not in shown
        assert key_class.__name__ in shown


def test_zero_is_no_key() -> None:
    assert NodePublic(bytes(32)).is_zero()
    assert not NodePublic(bytes(31) + b"\x01").is_zero()


def test_public_keys_can_be_pickled() -> None:
    key = NodePublic(b"\x07" * KEY_LEN)
    assert pickle.loads(pickle.dumps(key)) == key


# -- pairs and boxes --------------------------------------------------------


@pytest.mark.parametrize(
    ("private", "public_hex"),
    [
        (SERVER, SERVER_HEX),
        (CLIENT, CLIENT_HEX),
        (DISCO_A, DISCO_A_HEX),
        (DISCO_B, DISCO_B_HEX),
    ],
)
def test_public_half(private: NodePrivate | DiscoPrivate, public_hex: str) -> None:
    public = private.public()
    assert public.hex == public_hex
    assert isinstance(public, NodePublic) == isinstance(private, NodePrivate)


@pytest.mark.parametrize("key_class", [NodePrivate, DiscoPrivate])
def test_generated_keys_are_clamped_and_new(key_class: type[NodePrivate]) -> None:
    keys = [bytes(key_class.generate()) for _ in range(50)]
    assert len(set(keys)) == 50
    for raw in keys:
        assert raw[0] & 7 == 0
        assert raw[31] & 0xC0 == 0x40


def test_box_of_libsodium() -> None:
    b = DISCO_B.public()
    assert DISCO_A.seal_to(b, DISCO_PING, nonce=DISCO_NONCE) == DISCO_SEALED
    assert DISCO_B.open_from(DISCO_A.public(), DISCO_SEALED) == DISCO_PING


@given(cleartext=st.binary(max_size=100))
def test_boxes_open_for_the_right_pair_only(cleartext: bytes) -> None:
    sealed = CLIENT.seal_to(SERVER.public(), cleartext)
    assert len(sealed) == len(cleartext) + 40
    assert SERVER.open_from(CLIENT.public(), sealed) == cleartext
    assert sealed != CLIENT.seal_to(SERVER.public(), cleartext)
    for private, peer in (
        (SERVER, SERVER.public()),
        (NodePrivate(b"\x08" * 32), CLIENT.public()),
    ):
        with pytest.raises(RemoteProtocolError):
            private.open_from(peer, sealed)


@pytest.mark.parametrize("size", [0, 1, 23, 24, 39])
def test_short_boxes_do_not_open(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="does not open"):
        SERVER.open_from(CLIENT.public(), bytes(size))


def test_every_changed_bit_closes_the_box() -> None:
    sealed = CLIENT.seal_to(SERVER.public(), b"x")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(RemoteProtocolError):
            SERVER.open_from(CLIENT.public(), bytes(changed))


@pytest.mark.parametrize("point", LOW_ORDER_POINTS)
def test_low_order_points_are_the_fault_of_the_peer(point: str) -> None:
    """A relay could otherwise end a client with an exception of libsodium."""
    with pytest.raises(RemoteProtocolError, match="no box"):
        CLIENT.seal_to(NodePublic.from_hex(point), b"x")
    with pytest.raises(RemoteProtocolError, match="does not open"):
        CLIENT.open_from(NodePublic.from_hex(point), bytes(60))
    with pytest.raises(RemoteProtocolError, match="no box"):
        DISCO_A.seal_to(DiscoPublic.from_hex(point), b"x")
