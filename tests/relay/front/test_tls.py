"""TLS as an object: the server's end against OpenSSL's client, in memory."""

from __future__ import annotations

import ssl

import pytest

from relay.front.tls import PureTls, TlsError
from tests.doubles import TlsClient, server_context, tls_pair

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@pytest.mark.parametrize("version", VERSIONS)
def test_both_ways(version: ssl.TLSVersion) -> None:
    server, client = tls_pair(version)
    assert (server.ready, server.closed) == (True, False)
    assert server.version == version.name.replace("_", ".")
    assert server.feed(client.encode(b"to the relay")) == b"to the relay"
    assert not server.pending
    server.write(b"to the client")
    assert server.pending
    assert client.decode(server.take()) == b"to the client"
    assert server.take() == b""


def test_many_records_in_one_feed_and_parts_of_them() -> None:
    server, client = tls_pair()
    records = b"".join(client.encode(bytes([i]) * (i * 70)) for i in range(1, 200))
    plain = b"".join(bytes([i]) * (i * 70) for i in range(1, 200))
    cut = len(records) // 3
    assert server.feed(records[:cut]) + server.feed(records[cut:]) == plain


def test_handshake_byte_by_byte() -> None:
    server, client = PureTls(server_context()), TlsClient()
    to_server = client.handshake()
    while to_server:
        for byte in to_server:
            assert server.feed(bytes([byte])) == b""
        to_server = client.handshake(server.take())
    assert server.ready
    assert server.feed(client.encode(b"x")) == b"x"


@pytest.mark.parametrize("version", VERSIONS)
def test_records_byte_by_byte(version: ssl.TLSVersion) -> None:
    server, client = tls_pair(version)
    for data in (b"x", b"y" * 300):
        *first, last = client.encode(data)
        assert all(server.feed(bytes([byte])) == b"" for byte in first)
        assert server.feed(bytes([last])) == data


def test_large_write_becomes_records() -> None:
    server, client = tls_pair()
    data = bytes(range(256)) * 1024
    server.write(data)
    assert client.decode(server.take()) == data


def test_close_notify_of_the_client_comes_after_its_data() -> None:
    server, client = tls_pair()
    assert server.feed(client.encode(b"last") + client.close()) == b"last"
    assert server.closed
    server.close()
    client.decode(server.take())
    assert client.closed


def test_closing_before_the_handshake_is_nothing() -> None:
    server = PureTls(server_context())
    server.close()
    assert server.take() == b""


def test_plain_http_has_a_reason_of_its_own() -> None:
    server = PureTls(server_context())
    with pytest.raises(TlsError) as caught:
        server.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert caught.value.args == ("HTTP_REQUEST",)


@pytest.mark.parametrize(
    ("garbage", "alert"),
    [
        (b"\0" * 50, b""),  # no TLS at all: OpenSSL has no words for it
        (b"\x16\x03\x01\xff\xff" + b"x" * 50, b"\x15\x03\x03\0\2\2\x16"),
        (b"\x16\x03\x01\0\5hello", b"\x15\x03\x03\0\2\2\x0a"),
    ],
    ids=["no TLS", "long record", "no hello"],
)
def test_garbage_is_an_error(garbage: bytes, alert: bytes) -> None:
    server = PureTls(server_context())
    with pytest.raises(TlsError):
        server.feed(garbage)
    assert server.take() == alert


def test_bad_record_is_an_error_with_an_alert() -> None:
    server, client = tls_pair()
    record = bytearray(client.encode(b"x"))
    record[-1] ^= 1
    with pytest.raises(TlsError, match=r"MAC|BAD_RECORD"):
        server.feed(bytes(record))
    assert server.take()
