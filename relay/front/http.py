"""HTTP/1.1 for the relay: heads in, small answers out, no I/O.

h11 does the parsing; here are the bounds, and the words of Go's ``net/http``
for requests that are no requests.
"""

from __future__ import annotations

import http
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final

import h11

from tailnet.derp.upgrade import MAX_HEAD_LEN

__all__ = ("HttpError", "HttpReader", "HttpRequest", "encode_answer", "encode_switch")

# Of any route; those that take less refuse more themselves.
MAX_BODY_LEN: Final = 64 << 10
MAX_BODY_PIECES: Final = 64  # chunks; small ones cost as much as large ones


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A whole request.

    Attributes:
        method: As sent.
        target: As sent.
        headers: Names in lower case, in their order.
        http_version: ``1.0`` or ``1.1``.
        keep_alive: Whether another request may follow on the connection.
        body: At most MAX_BODY_LEN bytes.
    """

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    http_version: bytes
    keep_alive: bool
    body: bytes = b""


class HttpError(Exception):
    """A request that gets an error and the end of its connection.

    Attributes:
        status: The status to answer with.
        body: What the client is told; None for an answer without a body.
    """

    def __init__(self, status: int, detail: str, *, body: str | None = "") -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.body = body

    def answer(self) -> bytes:
        """What Go's server says (net/http server.go, serve)."""
        reason = http.HTTPStatus(self.status).phrase
        head = f"HTTP/1.1 {self.status} {reason}\r\n"
        if self.body is None:
            return f"{head}Connection: close\r\n\r\n".encode()
        return (
            f"{head}Content-Type: text/plain; charset=utf-8\r\n"
            f"Connection: close\r\n\r\n{self.body or f'{self.status} {reason}'}"
        ).encode()


# What Go says of requests that h11 refuses in other words.
_GO_WORDS: Final = {
    "Missing mandatory Host: header": "400 Bad Request: missing required Host header",
    "Only Transfer-Encoding: chunked is supported": "Unsupported transfer encoding",
}


class HttpReader:
    """The requests of one connection.

    Feed it with ``receive_data``; ``next_request`` returns a request when the
    whole of it, body included, has come. After an answer that keeps the
    connection, call ``next_cycle``.
    """

    __slots__ = ("_body", "_connection", "_head", "_pieces")

    def __init__(self) -> None:
        self._connection = h11.Connection(
            h11.SERVER, max_incomplete_event_size=MAX_HEAD_LEN
        )
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._pieces = 0

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the network; ``b""`` if the client has closed."""
        self._connection.receive_data(data)

    def next_request(self) -> HttpRequest | None:
        """Take the next request, or None until more bytes come.

        Raises:
            HttpError: The client does not speak HTTP, or too much of it.
        """
        try:
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Request):
                    _check(event)
                    self._head = event
                    if self._connection.they_are_waiting_for_100_continue:
                        return self._take_head(keep_alive=False)
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    # How TCP cuts a body up is not the client's choice.
                    self._pieces += event.chunk_start
                    if len(self._body) > MAX_BODY_LEN or self._pieces > MAX_BODY_PIECES:
                        raise HttpError(413, "a longer body than any route takes")
                elif isinstance(event, h11.EndOfMessage):
                    return self._take_head(keep_alive=True)
                else:
                    return None
        except h11.RemoteProtocolError as exc:
            raise HttpError(
                exc.error_status_hint, str(exc), body=_GO_WORDS.get(str(exc), "")
            ) from exc

    def _take_head(self, *, keep_alive: bool) -> HttpRequest:
        head, self._head = self._head, None
        body, self._body, self._pieces = bytes(self._body), bytearray(), 0
        assert head is not None  # h11 gives nothing else before it
        connection = {
            token.strip()
            for name, value in head.headers
            if name == b"connection"
            for token in value.lower().split(b",")
        }
        # RFC 9112 9.3: HTTP/1.0 keeps the connection only when told so.
        if head.http_version == b"1.0":
            keep_alive = keep_alive and b"keep-alive" in connection
        names = {name for name, _ in head.headers}
        if b"transfer-encoding" in names and (
            b"content-length" in names or head.http_version == b"1.0"
        ):
            # RFC 9112 6.1: two lengths, of which a proxy may have believed
            # the other one. What follows is not to be trusted.
            keep_alive = False
        return HttpRequest(
            method=head.method.decode("latin-1"),
            target=head.target.decode("latin-1"),
            headers=tuple((bytes(n), bytes(v)) for n, v in head.headers),
            http_version=bytes(head.http_version),
            keep_alive=keep_alive and b"close" not in connection,
            body=body,
        )

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a request has come yet."""
        return (
            self._connection.their_state is h11.IDLE
            and not self._connection.trailing_data[0]
        )

    def take_rest(self) -> bytes:
        """Bytes behind the request, for the protocol that follows it."""
        return bytes(self._connection.trailing_data[0])

    def next_cycle(self) -> None:
        """An answer was sent: get ready for the next request."""
        rest = self.take_rest()
        self._connection = h11.Connection(
            h11.SERVER, max_incomplete_event_size=MAX_HEAD_LEN
        )
        if rest:
            self._connection.receive_data(rest)


def _check(request: h11.Request) -> None:
    """What h11 lets pass, and Go's server and we do not.

    Raises:
        HttpError: The request gets no page.
    """
    # h11 bounds heads that are not whole yet, not those that come in one go.
    size = len(request.target) + sum(len(n) + len(v) + 4 for n, v in request.headers)
    if size > MAX_HEAD_LEN:
        raise HttpError(431, f"head of over {MAX_HEAD_LEN} bytes")
    if request.method == b"PRI" and request.http_version == b"2.0":
        raise HttpError(400, "HTTP/2 without an upgrade", body=None)
    if not request.http_version.startswith(b"1."):
        raise HttpError(
            505,
            "only HTTP/1",
            body="505 HTTP Version Not Supported: unsupported protocol version",
        )
    for name, value in request.headers:
        if name == b"expect" and value.lower() != b"100-continue":
            raise HttpError(417, "unknown expectation", body=None)


def encode_answer(
    status: int,
    headers: Iterable[tuple[str, str]],
    body: bytes,
    *,
    request: HttpRequest,
    keep_alive: bool,
) -> bytes:
    """Encode an answer with a known body.

    Args:
        status: HTTP status.
        headers: Without Date, Content-Length and Connection.
        body: Left out, but counted, for HEAD.
        request: What is answered.
        keep_alive: Whether the connection goes on afterwards.
    """
    reason = http.HTTPStatus(status).phrase
    # server.go writeStatusLine: a client of HTTP/1.0 gets its own version.
    is_old = request.http_version == b"1.0"
    lines = [f"HTTP/1.{0 if is_old else 1} {status} {reason}"]
    lines += (f"{name}: {value}" for name, value in headers)
    lines.append(f"Date: {formatdate(usegmt=True)}")
    # RFC 9110 8.6: a 204 or 304 has no content, nor a length of it.
    bodiless = status in (204, 304)
    if not bodiless:
        lines.append(f"Content-Length: {len(body)}")
    if keep_alive and is_old:
        lines.append("Connection: keep-alive")
    elif not keep_alive and not is_old:
        lines.append("Connection: close")
    head = "\r\n".join((*lines, "", "")).encode("latin-1", "replace")
    return head if bodiless or request.method == "HEAD" else head + body


def encode_switch(headers: Iterable[tuple[str, str]]) -> bytes:
    """Encode a 101, after which the connection speaks another protocol.

    Args:
        headers: Without Date, which Go's server gives websockets too.
    """
    lines = ["HTTP/1.1 101 Switching Protocols"]
    lines += (f"{name}: {value}" for name, value in headers)
    lines.append(f"Date: {formatdate(usegmt=True)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1")
