"""WebSocket for the probe: DERP bytes over messages, and frames by hand.

wsproto reads what the relay sends, strictly. What we send is built here, since
most of the questions are about frames that no library would write.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Final

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from tests.interop.probe.wire import Wire

__all__ = (
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "WEBSOCKET_KEY",
    "WebSocketWire",
    "encode_message",
    "right_accept",
    "websocket_headers",
)

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

WEBSOCKET_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455 section 1.3
_MASK: Final = b"\x37\xfa\x21\x3d"  # of RFC 6455 section 5.7


def websocket_headers(**changes: str | None) -> tuple[tuple[str, str], ...]:
    """The headers of a WebSocket upgrade to DERP.

    Args:
        changes: Other values, by name with ``_`` for ``-``; None leaves the
            header out.
    """
    values: dict[str, str | None] = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": WEBSOCKET_KEY,
        "Sec_WebSocket_Protocol": "derp",
    }
    values.update(changes)
    return tuple(
        (name.replace("_", "-"), value)
        for name, value in values.items()
        if value is not None
    )


def right_accept() -> str:
    """The Sec-WebSocket-Accept that belongs to WEBSOCKET_KEY (RFC 6455 4.2.2)."""
    text = WEBSOCKET_KEY + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    return base64.b64encode(hashlib.sha1(text.encode()).digest()).decode()


def encode_message(
    payload: bytes,
    opcode: int = BINARY,
    *,
    final: bool = True,
    masked: bool = True,
    reserved: int = 0,
) -> bytes:
    """One frame from a client (RFC 6455 section 5.2).

    Args:
        payload: What it carries.
        opcode: Any number below 16.
        final: The FIN bit.
        masked: Whether to mask, as every client must.
        reserved: The three RSV bits, as a number.
    """
    first = (0x80 if final else 0) | reserved << 4 | opcode
    mask_bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        header = struct.pack("!BB", first, mask_bit | size)
    elif size < 1 << 16:
        header = struct.pack("!BBH", first, mask_bit | 126, size)
    else:
        header = struct.pack("!BBQ", first, mask_bit | 127, size)
    if not masked:
        return header + payload
    key = (_MASK * (size // 4 + 1))[:size]
    sealed = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return header + _MASK + sealed.to_bytes(size, "big")


class WebSocketWire(Wire):
    """Bytes that travel in WebSocket messages, over another wire.

    Args:
        wire: On which a 101 has come.
        first: Bytes that came after it.
    """

    def __init__(self, wire: Wire, first: bytes = b"") -> None:
        self.below = wire
        self.largest_message = 0
        self._message_size = 0
        self._events: list[Event] = []
        self._parser = Connection(ConnectionType.CLIENT)
        if first:
            self._parser.receive_data(first)

    async def send(self, data: bytes) -> None:
        """Send ``data`` as one message."""
        await self.below.send(encode_message(data))

    async def receive(self) -> bytes:
        """Bytes of messages; none once a Close has come."""
        while True:
            match await self.next_event():
                case BytesMessage(data=data) if data:
                    return bytes(data)
                case None | CloseConnection():
                    return b""

    async def next_event(self) -> Event | None:
        """What comes next; None at the end of the connection.

        A Close is answered, as an honest client does; a Ping is not.
        """
        while True:
            if not self._events:
                self._events = list(self._parser.events())
            if self._events:
                event = self._events.pop(0)
                if isinstance(event, BytesMessage):
                    self._count(event)
                if isinstance(event, CloseConnection):
                    code = struct.pack("!H", event.code) if event.code != 1005 else b""
                    await self.below.send(encode_message(code, CLOSE))
                return event
            data = await self.below.receive()
            if not data:
                return None
            self._parser.receive_data(data)

    def _count(self, event: BytesMessage) -> None:
        # wsproto hands out a long message in parts.
        self._message_size += len(event.data)
        self.largest_message = max(self.largest_message, self._message_size)
        if event.message_finished:
            self._message_size = 0

    async def aclose(self) -> None:
        await self.below.aclose()


def describe(event: Event | None) -> str:
    """An event as a text. Reasons of a Close are a library's words: left out."""
    match event:
        case None:
            return "closed"
        case BytesMessage(data=data):
            return f"binary message of {len(data)} bytes"
        case TextMessage(data=data):
            return f"text message {data!r}"
        case Ping(payload=payload):
            return f"ping {bytes(payload)!r}"
        case Pong(payload=payload):
            return f"pong {bytes(payload)!r}"
        case CloseConnection(code=code):
            return f"close {int(code)}"
        case _:
            return type(event).__name__
