"""One request and the head of its answer, on a connection that is to change.

For upgrades: what comes behind the head belongs to another protocol, or is
the body of a refusal.
"""

from __future__ import annotations

from typing import Final

import h11
import trio

from tailnet.derp.upgrade import ResponseHead, ResponseReader, first_header

__all__ = ("READ_LEN", "exchange", "read_body")

# One read. As much as the kernel likes to give, and at most four TLS records.
READ_LEN: Final = 64 << 10


async def exchange(stream: trio.abc.Stream, request: bytes) -> ResponseHead:
    """Send a request; return the head of the answer.

    Raises:
        RemoteProtocolError: The answer is not HTTP, or there is none.
        trio.BrokenResourceError: The connection is gone.
    """
    await stream.send_all(request)
    reader = ResponseReader()
    while True:
        data = bytes(await stream.receive_some(READ_LEN))
        head = reader.receive_data(data)
        if head is not None:
            return head


async def read_body(
    stream: trio.abc.Stream,
    head: ResponseHead,
    *,
    max_len: int,
    timeout: float,  # noqa: ASYNC109 - it ends what is read, with no error
) -> bytes:
    """The beginning of an answer's body, as far as it comes soon.

    Args:
        stream: Where the head came from.
        head: Of the answer.
        max_len: Bytes.
        timeout: Seconds.
    """
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "-")]))
    connection.send(h11.EndOfMessage())
    framing = b"".join(
        b"%b: %b\r\n" % (name, value)
        for name in (b"content-length", b"transfer-encoding")
        if (value := first_header(head.headers, name))
    )
    connection.receive_data(b"HTTP/1.1 %d x\r\n%b\r\n" % (head.status, framing))
    if head.rest:  # nothing would mean that the peer has closed
        connection.receive_data(head.rest)
    body = b""
    with trio.move_on_after(timeout):
        try:
            while len(body) < max_len:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    data = bytes(await stream.receive_some(READ_LEN))
                    connection.receive_data(data)
                elif isinstance(event, h11.Data):
                    body += event.data
                elif not isinstance(event, h11.Response):
                    break
        except (h11.RemoteProtocolError, trio.BrokenResourceError):
            pass  # we have what we have
    return body[:max_len]
