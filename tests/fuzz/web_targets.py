"""Fuzz targets of HTTP heads and websockets."""

from __future__ import annotations

import h11

from relay.derp.session import SessionStatistics
from relay.derp.switch import SwitchStatistics
from relay.front.http import HttpError, HttpReader, HttpRequest, encode_answer
from relay.front.router import FrontStatistics, _to_request
from relay.pages.bootstrap_dns import BootstrapDns
from relay.pages.metrics import Metrics
from relay.pages.page import Response
from relay.pages.site import Site
from relay.stun import StunStatistics
from tailnet.derp.upgrade import (
    ResponseHead,
    ResponseReader,
    UpgradeKind,
    decode_upgrade_request,
)
from tailnet.derp.websocket import (
    MAX_MESSAGE_LEN,
    WebsocketStream,
    check_websocket_request,
    check_websocket_response,
    encode_websocket_response,
)
from tailnet.errors import RemoteProtocolError
from tests.fuzz.common import pieces, single_bytes

__all__ = (
    "page_request",
    "upgrade_request",
    "upgrade_response",
    "websocket_client",
    "websocket_server",
)

# RFC 6455 1.3.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def upgrade_request(data: bytes) -> None:
    """A client's request, by way of the relay's HTTP reader."""
    head = _request([data])
    for chunks in (pieces(data), single_bytes(data)):
        assert _request(chunks) == head
    if not isinstance(head, HttpRequest):
        return
    request = decode_upgrade_request(head.headers)
    answer = check_websocket_request(
        head.headers, head.method.encode("latin-1"), http_version=head.http_version
    )
    if answer.status == 101:
        wire = encode_websocket_response(answer)
        response = ResponseReader().receive_data(wire)
        assert response is not None
        assert (response.status, response.rest) == (101, b"")
        assert head.method == "GET"
    else:
        assert answer.text
        assert not answer.speaks_derp
    if request.kind is UpgradeKind.WEBSOCKET:
        offered = [v for n, v in head.headers if n == b"sec-websocket-protocol"]
        assert b"derp" in offered[0]


def _request(chunks: list[bytes]) -> HttpRequest | str | None:
    reader = HttpReader()
    for chunk in chunks:
        reader.receive_data(chunk)
        try:
            head = reader.next_request()
        except HttpError:
            return "error"
        if head is not None:
            return head
    return None


def _site() -> Site:
    switch, dns = SwitchStatistics(), BootstrapDns(())
    return Site(
        metrics=Metrics(
            switch=lambda: switch,
            sessions=SessionStatistics(),
            front=FrontStatistics(),
            stun=StunStatistics(),
            bootstrap_dns=dns.statistics,
            version="1",
        ),
        bootstrap_dns=dns,
        machine=lambda: "host",
    )


SITE = _site()


def page_request(data: bytes) -> None:
    """A request for a page, on either port; an odd first byte is an operator.

    Whatever is asked, the answer is one answer: nothing of the request breaks
    out of a header.
    """
    head = _request([data[1:]])
    if not isinstance(head, HttpRequest):
        return
    remote = ("127.0.0.1", 1) if data[0] & 1 else ("192.0.2.1", 1)
    for tls, answer in (
        (False, SITE.answer),
        (True, SITE.answer),
        (False, SITE.answer_helper),
    ):
        try:
            request = _to_request(head, remote, tls=tls)
        except HttpError:
            return
        _check_answer(head, answer(request))


def _check_answer(head: HttpRequest, response: Response) -> None:
    wire = encode_answer(
        response.status,
        response.headers,
        response.body,
        request=head,
        keep_alive=False,
    )
    reader = h11.Connection(h11.CLIENT)
    # HEAD has no body, and neither has CONNECT when it is granted.
    method = head.method if head.method in ("HEAD", "CONNECT") else "GET"
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "-")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(wire)
    reader.receive_data(b"")
    event, body = reader.next_event(), b""
    assert isinstance(event, h11.Response)
    assert event.status_code == response.status
    sent = {name.lower() for name, _ in response.headers}
    assert {name.decode() for name, _ in event.headers} - sent <= {
        "date",
        "content-length",
        "connection",
    }
    while isinstance(event := reader.next_event(), h11.Data):
        body += event.data
    if method == "GET" and response.status not in (204, 304):
        assert body == response.body


def upgrade_response(data: bytes) -> None:
    """A relay's answer to an upgrade."""
    head = _response([data])
    for chunks in (pieces(data), single_bytes(data)):
        assert _response(chunks) == head
    if isinstance(head, ResponseHead):
        assert data.endswith(head.rest)
        try:
            check_websocket_response(head, KEY)
        except RemoteProtocolError:
            pass
        else:
            assert head.status == 101


def _response(chunks: list[bytes]) -> ResponseHead | str | None:
    reader = ResponseReader()
    for index, chunk in enumerate(chunks):
        if not chunk:  # which would mean the end of the stream
            continue
        try:
            head = reader.receive_data(chunk)
        except RemoteProtocolError:
            return "error"
        if head is not None:
            rest = head.rest + b"".join(chunks[index + 1 :])
            return ResponseHead(head.status, head.reason, head.headers, rest)
    return None


def websocket_server(data: bytes) -> None:
    """What a client sends to a relay; frames are masked."""
    _check_stream(data, server=True)


def websocket_client(data: bytes) -> None:
    """What a relay sends to a client."""
    _check_stream(data, server=False)


def _check_stream(data: bytes, *, server: bool) -> None:
    got, fault, replies = _stream([data], server=server)
    for chunks in (pieces(data), single_bytes(data)):
        other_got, other_fault, other_replies = _stream(chunks, server=server)
        assert other_fault == fault
        if not fault:
            assert other_got == got
        # A client's masks are random.
        if server:
            assert other_replies == replies
    near, far = WebsocketStream(server=server), WebsocketStream(server=not server)
    wire = near.encode(data)
    assert far.receive_data(wire) == data
    assert len(wire) <= len(data) + 14 * (len(data) // MAX_MESSAGE_LEN + 1)


def _stream(chunks: list[bytes], *, server: bool) -> tuple[bytes, bool, bytes]:
    stream, got = WebsocketStream(server=server), b""
    for chunk in chunks:
        try:
            got += stream.receive_data(chunk)
        except RemoteProtocolError:
            assert stream.closed
            return got, True, stream.data_to_send()
    return got, False, stream.data_to_send()
