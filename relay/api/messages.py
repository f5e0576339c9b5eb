"""Websockets of messages, for the few endpoints where messages mean something.

The RPC endpoints take a websocket as a stream of bytes (``relay.api.link``).
These here speak text messages: the echo for health checks, and the logs of
agents. They are rare and not fast, so wsproto does all of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import structlog
import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    TextMessage,
)

from relay.api.context import VERSION_HEADER, ApiRequest
from relay.api.link import accept_websocket
from relay.front.application import Takeover
from relay.front.http import encode_switch
from relay.front.tls import TlsError
from relay.front.wire import Wire
from relay.pages.page import Response
from tailnet.control.link import CLOSE_GOING_AWAY
from tailnet.derp.websocket import check_websocket_request

__all__ = ("MAX_MESSAGE_LEN", "MessageSocket", "accept_messages")

log = structlog.get_logger("relay.api")

Message: TypeAlias = str | bytes

# coder/websocket reads no longer message unless told to. Bytes.
MAX_MESSAGE_LEN: Final = 32_768
CLOSE_TOO_BIG: Final = 1009  # RFC 6455 7.4.1

# For the last words on a connection that is to be closed.
CLOSE_TIMEOUT: Final = 5.0


class MessageSocket:
    """The server's end of a websocket, as messages.

    Args:
        wire: The connection; the 101 has been sent.
        received: Bytes that came behind the request.

    Attributes:
        pongs: Answers to our Pings so far.
        fault: What the client has done wrong; None if nothing.
    """

    def __init__(self, wire: Wire, received: bytes) -> None:
        self._wire = wire
        self._connection = Connection(ConnectionType.SERVER)
        self._connection.receive_data(received)
        self._parts: list[Message] = []
        self._size = 0
        self.pongs = 0
        self.fault: str | None = None

    async def receive(self) -> Message | None:
        """The next message, text or bytes; None at the end, however it came.

        Raises:
            OSError, TlsError: The connection broke.
        """
        while True:
            for event in self._connection.events():
                match event:
                    case TextMessage() | BytesMessage():
                        message = self._add(event)
                        if message is not None:
                            return message
                    case Ping():
                        await self._send(event.response())
                    case Pong():
                        self.pongs += 1
                    case CloseConnection():
                        # wsproto answers a broken rule with the same event.
                        if self._connection.state is ConnectionState.OPEN:
                            self.fault = event.reason or "broken frame"
                        if self._connection.state is not ConnectionState.CLOSED:
                            await self._send(event.response())
                        return None
            if self._size > MAX_MESSAGE_LEN:
                self.fault = "message too big"
                await self.close(CLOSE_TOO_BIG, self.fault)
            if self._connection.state is not ConnectionState.OPEN:
                return None
            data = await self._wire.receive()
            if not data:
                return None
            self._connection.receive_data(data)

    def _add(self, event: TextMessage | BytesMessage) -> Message | None:
        """Add a part of a message; the whole, if this was the last one."""
        self._size += len(event.data)
        if self._size > MAX_MESSAGE_LEN:
            self._parts.clear()
            return None
        self._parts.append(
            event.data if isinstance(event, TextMessage) else bytes(event.data)
        )
        if not event.message_finished:
            return None
        parts, self._parts, self._size = self._parts, [], 0
        if isinstance(event, TextMessage):
            return "".join(part for part in parts if isinstance(part, str))
        return b"".join(part for part in parts if isinstance(part, bytes))

    async def send(self, message: Message) -> None:
        """Send a message; nothing happens once the websocket is closed.

        Raises:
            OSError: The connection broke.
        """
        if isinstance(message, str):
            await self._send(TextMessage(data=message))
        else:
            await self._send(BytesMessage(data=message))

    async def ping(self) -> None:
        """Ask the client whether it is still there."""
        await self._send(Ping())

    async def close(self, code: int, reason: str) -> None:
        """Say why the websocket ends, if its end was not said already."""
        await self._send(CloseConnection(code=code, reason=reason))

    async def _send(self, event: Event) -> None:
        if self._connection.state is ConnectionState.OPEN or (
            isinstance(event, CloseConnection)
            and self._connection.state is ConnectionState.REMOTE_CLOSING
        ):
            await self._wire.send(self._connection.send(event))


def accept_messages(
    request: ApiRequest, serve: Callable[[MessageSocket], Awaitable[None]]
) -> Response | Takeover:
    """Turn a request into a websocket of messages, if it asks for one.

    Args:
        request: A GET.
        serve: Talks; the websocket is closed when it returns.
    """

    async def unused(_: object) -> None:
        raise AssertionError("the websocket is served below")

    judged = accept_websocket(request.request, request.context.heartbeats, unused)
    if isinstance(judged, Response):
        return judged
    answer = check_websocket_request(
        request.request.headers, b"GET", subprotocol=None
    ).text_headers()
    path = request.request.path

    async def run(wire: Wire, rest: bytes) -> None:
        await wire.send(
            encode_switch((*answer, (VERSION_HEADER, request.context.version)))
        )
        messages = MessageSocket(wire, rest)
        try:
            await serve(messages)
            with trio.move_on_after(CLOSE_TIMEOUT):
                await messages.close(CLOSE_GOING_AWAY, "goodbye")
        except (OSError, TlsError) as exc:
            log.info("a websocket broke", path=path, reason=str(exc))
            return
        if messages.fault is not None:
            log.info("a websocket broke", path=path, reason=messages.fault)
        await wire.linger()

    return Takeover(run)
