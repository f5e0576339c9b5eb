"""A request for a page, and the answer to it: values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tailnet.derp.upgrade import first_header

__all__ = ("Request", "Response", "go_error")

TEXT_PLAIN: Final = ("Content-Type", "text/plain; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Request:
    """What a page can know of a request.

    Attributes:
        method: As sent.
        target: As sent, without scheme and host.
        path: Of the target, percent-decoded.
        query: Of the target, raw, without the question mark.
        headers: Names in lower case, in their order.
        remote: Address and port of the client, None if unknown.
        tls: Whether it came over TLS.
        body: Of the request; empty if there was none.
        http_version: ``1.0`` or ``1.1``.
    """

    method: str
    target: str
    path: str
    query: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    remote: tuple[str, int] | None = None
    tls: bool = False
    body: bytes = b""
    http_version: bytes = b"1.1"

    def header(self, name: str) -> str:
        """The first value of a header, or the empty string."""
        return first_header(self.headers, name.encode()).decode("latin-1")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, without the headers that every answer has.

    Attributes:
        status: HTTP status.
        headers: Without Date, Content-Length and Connection.
        body: Also for HEAD, for which it is only counted.
        close: The connection ends behind the answer.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    close: bool = False


def go_error(status: int, text: str) -> Response:
    """An error as Go's ``http.Error`` writes it: the text and a newline."""
    return Response(
        status,
        (TEXT_PLAIN, ("X-Content-Type-Options", "nosniff")),
        f"{text}\n".encode(),
    )
