"""A tap on a relay's TLS port: passes everything on, and remembers the start.

It shows a client the relay's very own certificate chain (it has the leaf's
key, since the relay of a test keeps it in a file), so the client cannot tell
the difference, and sees what is said inside TLS.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import trio

from tests.interop.programs import run_program
from tests.interop.relay_program import Relay, careless_tls
from tests.interop.tools import find_debian_tool

__all__ = ("Conversation", "Tap", "open_tap")

REMEMBERED: Final = 4096  # bytes of each direction


@dataclass(slots=True)
class Conversation:
    """How one connection began."""

    from_client: bytearray = field(default_factory=bytearray)
    from_relay: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class Tap:
    """A tap that is open.

    Attributes:
        port: Where clients are to connect instead.
        conversations: One for each connection, in order.
    """

    port: int
    conversations: list[Conversation] = field(default_factory=list)


async def fetch_chain(relay: Relay, folder: Path) -> str:
    """Return the certificates that the relay shows, as PEM."""
    shown = await run_program(
        find_debian_tool("openssl"),
        *("s_client", "-showcerts", "-connect", f"{relay.host}:{relay.port}"),
        *("-servername", relay.hostname),
        folder=folder,
        timeout=10,
    )
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    certificates = shown.stdout.decode().split(begin)[1:]
    return "".join(f"{begin}{text.partition(end)[0]}{end}\n" for text in certificates)


@contextlib.asynccontextmanager
async def open_tap(relay: Relay, folder: Path) -> AsyncIterator[Tap]:
    """Run a tap in front of ``relay`` while the block runs.

    Args:
        relay: One with TLS.
        folder: For the chain; made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chain = trio.Path(folder / "chain.pem")
    await chain.write_text(await fetch_chain(relay, folder))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, relay.folder / "certs" / f"{relay.hostname}.key")
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        tap = Tap(listeners[0].socket.getsockname()[1])
        nursery.start_soon(
            trio.serve_listeners,
            partial(_pass_on, relay, tap, context),
            listeners,
        )
        yield tap
        nursery.cancel_scope.cancel()


async def _pass_on(
    relay: Relay, tap: Tap, context: ssl.SSLContext, stream: trio.SocketStream
) -> None:
    conversation = Conversation()
    tap.conversations.append(conversation)
    client = trio.SSLStream(stream, context, server_side=True)
    # The other side of a test may end at any moment.
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        upstream = trio.SSLStream(
            await trio.open_tcp_stream(relay.host, relay.port),
            careless_tls(),
            server_hostname=relay.hostname,
        )
        async with client, upstream, trio.open_nursery() as nursery:
            for source, target, seen in (
                (client, upstream, conversation.from_client),
                (upstream, client, conversation.from_relay),
            ):
                nursery.start_soon(_copy, source, target, seen, nursery.cancel_scope)


async def _copy(
    source: trio.abc.Stream,
    target: trio.abc.Stream,
    seen: bytearray,
    both: trio.CancelScope,
) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            seen += data[: REMEMBERED - len(seen)]
            await target.send_all(data)
    both.cancel()
