"""HTTP requests as bytes, and the answers to them, read strictly by h11."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import h11

from tests.interop.probe.answers import Json
from tests.interop.probe.wire import Target, Wire, open_wire

__all__ = ("Reply", "exchange", "head", "read_reply")

# Dates differ from run to run; how a body is delimited is h11's business, and
# it raises if that is wrong.
_IGNORED: Final = {"date", "content-length", "transfer-encoding"}

_REPLY_TIMEOUT: Final = 20.0

# How long a relay gets to close after its answer. It does so at once or not.
_CLOSING_TIME: Final = 0.7


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response.

    Attributes:
        status: 0 if there was none.
        version: ``1.1`` or ``1.0``.
        headers: Lower-case names and values, sorted.
        body: The whole of it, or what is wrong with it.
        rest: Bytes after a 101.
    """

    status: int
    version: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    rest: bytes = b""

    def answer(self, target: Target) -> dict[str, Json]:
        """The response as an answer of the probe."""
        answer: dict[str, Json] = {"status": self.status}
        if self.version not in ("1.1", ""):
            answer["version"] = self.version
        headers: Json = {
            name: target.mask(value)
            for name, value in self.headers
            if name not in _IGNORED
        }
        if headers:
            answer["headers"] = headers
        if self.body:
            answer["body"] = _show_body(target, self.body)
        return answer


def head(
    target: Target,
    *,
    method: str = "GET",
    path: str = "/derp",
    version: str = "HTTP/1.1",
    host: str | None = "",
    headers: Iterable[tuple[str, str]] = (),
) -> bytes:
    """The head of a request.

    Args:
        target: Who is asked.
        method: As is.
        path: As is.
        version: As is.
        host: Value of Host; the relay's if empty, no such header if None.
        headers: The others.
    """
    lines = [f"{method} {path} {version}"]
    if host is not None:
        lines.append(f"Host: {host or target.authority}")
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def read_reply(
    wire: Wire, *, method: str = "GET", first: bytes = b""
) -> Reply | str:
    """Read one response.

    Args:
        wire: Where it comes from.
        method: What was asked; HEAD has no body.
        first: Bytes that have been read already.

    Returns:
        The response, or a text if there is none.
    """
    parser = h11.Connection(h11.CLIENT)
    # Only for the parser's state. It takes a 101 if an upgrade was asked for.
    parser.send(
        h11.Request(
            method=method,
            target="/",
            headers=[("Host", "x"), ("Upgrade", "x"), ("Connection", "Upgrade")],
        )
    )
    parser.send(h11.EndOfMessage())
    if first:
        parser.receive_data(first)
    response: h11.Response | h11.InformationalResponse | None = None
    seen, body = first, b""
    while True:
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError as exc:
            if not seen:
                return "closed without an answer"
            return f"not HTTP: {exc}; {bytes(seen[:60])!r}"
        match event:
            case h11.NEED_DATA:
                data = await wire.receive_within(_REPLY_TIMEOUT)
                if data is None:
                    return "silence" if not seen else f"half an answer: {seen[:60]!r}"
                seen += data[:60]
                parser.receive_data(data)
            case h11.InformationalResponse() if event.status_code == 101:
                response = event
                break
            case h11.Response():
                response = event
            case h11.Data():
                body += bytes(event.data)
            case h11.ConnectionClosed():
                return "closed without an answer"
            case h11.EndOfMessage() | h11.PAUSED:
                break
            case _:
                continue
    if response is None:
        return "no response"
    rest, _ = parser.trailing_data
    return Reply(
        response.status_code,
        response.http_version.decode(),
        tuple(
            sorted((name.decode(), value.decode()) for name, value in response.headers)
        ),
        body,
        bytes(rest),
    )


async def exchange(
    target: Target,
    request: bytes,
    *,
    method: str = "GET",
    port: int | None = None,
    tls: bool | None = None,
) -> Json:
    """Send ``request`` on a new connection; the answer, and what follows it."""
    async with open_wire(target, port=port, tls=tls) as wire:
        await wire.send(request)
        reply = await read_reply(wire, method=method)
        if isinstance(reply, str):
            return reply
        answer = reply.answer(target)
        is_closed = await wire.closes_within(_CLOSING_TIME)
        answer["then"] = "closed" if is_closed else "open"
        return answer


def _show_body(target: Target, body: bytes) -> Json:
    text = target.mask(body.decode("utf-8", "replace"))
    # A page's words are its own; that it is a page is the answer.
    if "<html" in text[:200].lower():
        return "an HTML page"
    return text
