"""A proxy in front of a server, which writes down who asked for what.

One request a connection: it tells the server to close after any answer that
is not an upgrade, so that the first bytes of a connection are its only head.
With ``--refuse-derp`` it answers a raw DERP upgrade with 426, as proxies do
that know websockets and nothing else.

Each request is one JSON line on standard error: ``method``, ``path`` (without
the query), ``query``, ``upgrade``, ``peer`` (address) and ``refused``. The
first line of all is ``{"ready": true}``.

Run as ``python -m tests.interop.coder.front``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

MAX_HEAD: Final = 65536  # bytes
REFUSAL: Final = (
    b"HTTP/1.1 426 Upgrade Required\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 16\r\n"
    b"Connection: close\r\n\r\n"
    b"websockets only\n"
)


def say(**fields: object) -> None:
    sys.stderr.write(json.dumps(fields) + "\n")
    sys.stderr.flush()


async def read_head(stream: trio.SocketStream) -> tuple[bytes, bytes] | None:
    """Read up to the empty line; returns the head with it, and what follows."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        if not more or len(data) > MAX_HEAD:
            return None
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def headers_of(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def with_close(head: bytes) -> bytes:
    """The head with ``Connection: close`` in place of what it had."""
    first, *lines = head.split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([first, *kept, b"Connection: close"])


async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    """Carry bytes one way until either side is gone."""
    try:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        # The other direction has to end too.
        await trio.aclose_forcefully(source)
        await trio.aclose_forcefully(sink)


async def serve(
    client: trio.SocketStream, *, server: tuple[str, int], refuse_derp: bool
) -> None:
    try:
        read = await read_head(client)
        if read is None:
            return
        head, rest = read
        headers = headers_of(head)
        method, target, _ = head.split(b"\r\n")[0].decode("latin-1").split(" ", 2)
        path, _, query = target.partition("?")
        upgrade = headers.get("upgrade", "").lower()
        refused = refuse_derp and upgrade == "derp"
        say(
            method=method,
            path=path,
            query=query,
            upgrade=upgrade,
            peer=client.socket.getpeername()[0],
            refused=refused,
        )
        if refused:
            await client.send_all(REFUSAL)
            return
        if not upgrade:
            head = with_close(head)
        async with await trio.open_tcp_stream(*server) as upstream:
            await upstream.send_all(head + b"\r\n\r\n" + rest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump, upstream, client)
                nursery.start_soon(pump, client, upstream)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # The server is not there, or the client went.
    finally:
        await trio.aclose_forcefully(client)


async def run(
    listen: tuple[str, int], server: tuple[str, int], *, refuse_derp: bool
) -> None:
    listeners = await trio.open_tcp_listeners(listen[1], host=listen[0])
    say(ready=True)
    handler = partial(serve, server=server, refuse_derp=refuse_derp)
    await trio.serve_listeners(handler, listeners)


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", type=address, required=True)
    parser.add_argument("--server", type=address, required=True)
    parser.add_argument("--refuse-derp", action="store_true")
    given = parser.parse_args(arguments)
    trio.run(partial(run, given.listen, given.server, refuse_derp=given.refuse_derp))


if __name__ == "__main__":
    main(sys.argv[1:])
