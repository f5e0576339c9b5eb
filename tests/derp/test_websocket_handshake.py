"""The handshake that leads to a websocket."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from wsproto.utilities import generate_accept_token

from tailnet.derp.upgrade import ResponseHead, ResponseReader
from tailnet.derp.websocket import (
    MAX_SMALL_FRAMES,
    WebsocketAnswer,
    WebsocketStream,
    check_websocket_request,
    check_websocket_response,
    encode_websocket_request,
    encode_websocket_response,
    generate_websocket_key,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tests.derp.test_websocket import ACCEPT, GOOD_REQUEST, KEY

# -- the handshake ----------------------------------------------------------


def test_good_request_is_accepted() -> None:
    answer = check_websocket_request(GOOD_REQUEST, b"GET")
    assert answer == WebsocketAnswer(
        101,
        headers=(
            (b"Connection", b"Upgrade"),
            (b"Sec-Websocket-Accept", ACCEPT),
            (b"Sec-Websocket-Protocol", b"derp"),
            (b"Upgrade", b"websocket"),
        ),
        speaks_derp=True,
    )
    assert encode_websocket_response(answer) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-Websocket-Protocol: derp\r\n"
        b"Upgrade: websocket\r\n"
        b"\r\n"
    )


def changed(name: bytes, *values: bytes) -> list[tuple[bytes, bytes]]:
    """GOOD_REQUEST with other values of one header."""
    rest = [header for header in GOOD_REQUEST if header[0] != name]
    return rest + [(name, value) for value in values]


def test_origin_and_extensions_do_not_matter() -> None:
    headers = [
        *GOOD_REQUEST,
        (b"origin", b"https://evil.example"),
        (b"sec-websocket-extensions", b"permessage-deflate"),
    ]
    answer = check_websocket_request(headers, b"GET")
    assert answer == check_websocket_request(GOOD_REQUEST, b"GET")


@pytest.mark.parametrize(
    ("offered", "chosen", "speaks_derp"),
    [
        (b"chat, derp", b"derp", True),
        (b"xderp", None, False),
        (b"derp.v2,", None, False),
        (b"DERP, derp", b"DERP", False),
    ],
)
def test_subprotocol(offered: bytes, chosen: bytes | None, speaks_derp: bool) -> None:
    answer = check_websocket_request(
        changed(b"sec-websocket-protocol", offered), b"GET"
    )
    assert (answer.status, answer.speaks_derp) == (101, speaks_derp)
    assert dict(answer.headers).get(b"Sec-Websocket-Protocol") == chosen


@pytest.mark.parametrize(
    ("headers", "status", "text"),
    [
        (
            changed(b"connection", b"close"),
            426,
            (
                'WebSocket protocol violation: Connection header "close" does not '
                "contain Upgrade"
            ),
        ),
        (
            changed(b"connection"),
            426,
            (
                'WebSocket protocol violation: Connection header "" does not '
                "contain Upgrade"
            ),
        ),
        (
            changed(b"upgrade", b'h2"c'),
            426,
            (
                'WebSocket protocol violation: Upgrade header "h2\\"c" does not '
                "contain websocket"
            ),
        ),
        (
            changed(b"sec-websocket-version", b"8"),
            400,
            'unsupported WebSocket protocol version (only 13 is supported): "8"',
        ),
        (
            changed(b"sec-websocket-key"),
            400,
            "WebSocket protocol violation: missing Sec-WebSocket-Key",
        ),
        (
            changed(b"sec-websocket-key", KEY.encode(), KEY.encode()),
            400,
            "WebSocket protocol violation: multiple Sec-WebSocket-Key headers",
        ),
        (
            changed(b"sec-websocket-key", b"c2hvcnQ="),
            400,
            (
                'WebSocket protocol violation: invalid Sec-WebSocket-Key "c2hvcnQ=", '
                "must be a 16 byte base64 encoded string"
            ),
        ),
        (
            changed(b"sec-websocket-key", b"\xff"),
            400,
            (
                'WebSocket protocol violation: invalid Sec-WebSocket-Key "\\xff", '
                "must be a 16 byte base64 encoded string"
            ),
        ),
    ],
)
def test_refusals(headers: list[tuple[bytes, bytes]], status: int, text: str) -> None:
    answer = check_websocket_request(headers, b"GET")
    assert (answer.status, answer.text, answer.speaks_derp) == (status, text, False)
    with pytest.raises(LocalProtocolError):
        encode_websocket_response(answer)


def test_refusals_name_what_would_do() -> None:
    upgrade = check_websocket_request(changed(b"connection"), b"GET")
    assert upgrade.headers == ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
    version = check_websocket_request(changed(b"sec-websocket-version"), b"GET")
    assert version.headers == ((b"Sec-Websocket-Version", b"13"),)


def test_only_get_and_only_http_1_1() -> None:
    answer = check_websocket_request(GOOD_REQUEST, b"POST")
    assert answer == WebsocketAnswer(
        405,
        text="WebSocket protocol violation: handshake request method is not GET "
        'but "POST"',
    )
    answer = check_websocket_request(GOOD_REQUEST, b"GET", http_version=b"1.0")
    assert answer == WebsocketAnswer(
        426,
        text="WebSocket protocol violation: handshake request must be at least "
        'HTTP/1.1: "HTTP/1.0"',
    )


def test_request_for_another_path_without_a_subprotocol() -> None:
    wire = encode_websocket_request("d", KEY, target="/a?b=c", subprotocol=None)
    assert wire.startswith(b"GET /a?b=c HTTP/1.1\r\nHost: d\r\n")
    assert b"Sec-WebSocket-Protocol" not in wire


@pytest.mark.parametrize(
    ("chosen", "wanted", "is_good"),
    [
        (b"", None, True),
        (b"", b"derp", True),
        (b"Derp", b"derp", True),
        (b"derp", None, False),
        (b"other", b"derp", False),
    ],
)
def test_subprotocol_of_an_answer(
    chosen: bytes, wanted: bytes | None, is_good: bool
) -> None:
    headers = [
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-accept", generate_accept_token(KEY.encode())),
        *([(b"sec-websocket-protocol", chosen)] if chosen else []),
    ]
    head = ResponseHead(101, "", tuple(headers), b"")
    with nullcontext() if is_good else pytest.raises(RemoteProtocolError, match="subp"):
        check_websocket_response(head, KEY, subprotocol=wanted)


def test_request_on_the_wire() -> None:
    wire = encode_websocket_request("d:444", KEY, headers=[("X-Token", "s3cret")])
    assert wire == (
        b"GET /derp HTTP/1.1\r\n"
        b"Host: d:444\r\n"
        b"User-Agent: tailnet\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Protocol: derp\r\n"
        b"X-Token: s3cret\r\n"
        b"\r\n"
    )
    with pytest.raises(LocalProtocolError):
        encode_websocket_request("d", "two\r\nlines")


def test_keys_are_good_and_new() -> None:
    keys = {generate_websocket_key() for _ in range(20)}
    assert len(keys) == 20
    for key in keys:
        headers = changed(b"sec-websocket-key", key.encode())
        assert check_websocket_request(headers, b"GET").status == 101


def check_response(status: str, *headers: bytes) -> None:
    wire = b"\r\n".join([b"HTTP/1.1 " + status.encode(), *headers, b"", b""])
    head = ResponseReader().receive_data(wire)
    assert head is not None
    check_websocket_response(head, KEY)


GOOD_RESPONSE = (
    b"Connection: upgrade",
    b"Upgrade: WebSocket",
    b"Sec-WebSocket-Accept: " + ACCEPT,
)


@pytest.mark.parametrize("more", [[], [b"Sec-WebSocket-Protocol: derp"]])
def test_good_response(more: list[bytes]) -> None:
    check_response("101 Switching Protocols", *GOOD_RESPONSE, *more)


@pytest.mark.parametrize(
    ("status", "headers", "problem"),
    [
        ("200 OK", GOOD_RESPONSE, "status 200"),
        ("101 X", GOOD_RESPONSE[1:], "no Connection"),
        ("101 X", (GOOD_RESPONSE[0], GOOD_RESPONSE[2]), "no Upgrade"),
        ("101 X", GOOD_RESPONSE[:2], "Sec-WebSocket-Accept"),
        (
            "101 X",
            (*GOOD_RESPONSE, b"Sec-WebSocket-Protocol: chat"),
            'subprotocol "chat"',
        ),
        (
            "101 X",
            (*GOOD_RESPONSE, b"Sec-WebSocket-Extensions: permessage-deflate"),
            "extensions",
        ),
    ],
)
def test_bad_response(status: str, headers: tuple[bytes, ...], problem: str) -> None:
    with pytest.raises(RemoteProtocolError, match=problem):
        check_response(status, *headers)


def test_handshake_of_both_ends() -> None:
    key = generate_websocket_key()
    request = encode_websocket_request("d", key)
    lines = request.split(b"\r\n")[1:-2]
    headers = [(n, v) for n, _, v in (line.partition(b": ") for line in lines)]
    answer = check_websocket_request(headers, b"GET")
    relay, client = WebsocketStream(server=True), WebsocketStream(server=False)
    wire = encode_websocket_response(answer) + relay.encode(b"ServerKey")
    head = ResponseReader().receive_data(wire)
    assert head is not None
    check_websocket_response(head, key)
    assert client.receive_data(head.rest) == b"ServerKey"


@pytest.mark.parametrize("frame", ["8980", "8a80", "0280"])
def test_flood_of_small_frames_is_cut_short(frame: str) -> None:
    """A megabyte of them took seconds, in which nobody else was served."""
    stream = WebsocketStream(server=True)
    small = bytes.fromhex(frame) + bytes(4)
    if frame == "0280":  # fragments of one message that never ends
        rest = bytes.fromhex("0080") + bytes(4)
        flood = small + rest * MAX_SMALL_FRAMES
    else:
        stream.receive_data(small * MAX_SMALL_FRAMES)
        stream.data_to_send()
        flood = small * (MAX_SMALL_FRAMES + 1)
    with pytest.raises(RemoteProtocolError, match="too many small frames"):
        stream.receive_data(flood)
    assert b"\x03\xf0too many small frames" in stream.data_to_send()


def test_a_ping_gets_its_pong() -> None:
    server, client = WebsocketStream(server=True), WebsocketStream(server=False)
    assert client.receive_data(server.encode_ping()) == b""
    assert server.receive_data(client.data_to_send()) == b""
    assert server.pongs == 1


@pytest.mark.parametrize("is_server", [True, False])
def test_a_ping_that_meets_our_close_gets_no_pong(is_server: bool) -> None:
    ours = WebsocketStream(server=is_server)
    theirs = WebsocketStream(server=not is_server)
    crossing = theirs.encode_ping() + theirs.encode(b"late")
    ours.close()
    assert theirs.receive_data(ours.data_to_send()) == b""
    assert ours.receive_data(crossing) == b"late"
    assert not ours.pending
    assert ours.receive_data(theirs.data_to_send()) == b""
    assert (ours.closed, ours.close_code) == (True, 1000)


def test_no_ping_after_a_close() -> None:
    server = WebsocketStream(server=True)
    server.close()
    with pytest.raises(LocalProtocolError):
        server.encode_ping()


def test_other_services_agree_on_no_subprotocol() -> None:
    headers = [
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
        (b"sec-websocket-protocol", b"derp"),
    ]
    answer = check_websocket_request(headers, b"GET", subprotocol=None)
    assert answer.status == 101
    assert not answer.speaks_derp
    assert b"Sec-Websocket-Protocol" not in dict(answer.headers)
