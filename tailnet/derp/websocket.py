"""A byte stream in websocket messages, and the handshake that leads there.

Wire format: RFC 6455, and what Go's ends make of it: tailscale
``derpserver/websocket.go``, ``wsconn/wsconn.go`` and the library
coder/websocket v1.8 beneath them. DERP over a websocket is a byte stream: a
frame may span messages and a message may hold many frames, so messages have
no meaning of their own. Binary only, no extensions, subprotocol ``derp``.

:class:`WebsocketStream` is for the time after the HTTP handshake. wsproto
does the framing; the two things a relay does for every packet have a short
way of their own beside it, held equal to wsproto by the tests: writing a
server's frames, and reading a whole unfragmented message.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping
from wsproto.utilities import generate_accept_token, generate_nonce

from tailnet.derp.upgrade import (
    DERP_PATH,
    Headers,
    ResponseHead,
    encode_request_head,
    first_header,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError

__all__ = (
    "CLOSE_NORMAL",
    "CLOSE_POLICY_VIOLATION",
    "CLOSE_UNSUPPORTED_DATA",
    "MAX_MESSAGE_LEN",
    "MUST_SPEAK_DERP",
    "SUBPROTOCOL",
    "WebsocketAnswer",
    "WebsocketStream",
    "check_websocket_request",
    "check_websocket_response",
    "encode_websocket_request",
    "encode_websocket_response",
    "generate_websocket_key",
)

SUBPROTOCOL: Final = b"derp"

# coder/websocket reads at most 32,768 bytes a message, and neither Go end
# raises that; it fails with "read limited at 32769 bytes". Some slack below.
MAX_MESSAGE_LEN: Final = 32_000

# RFC 6455 7.4.1.
CLOSE_NORMAL: Final = 1000
CLOSE_UNSUPPORTED_DATA: Final = 1003

# Control frames and fragments in one read; whole messages are not counted. A
# frame of six bytes costs wsproto tens of microseconds, so a megabyte of them
# would be seconds. No client of DERP sends more than a few.
MAX_SMALL_FRAMES: Final = 256
CLOSE_POLICY_VIOLATION: Final = 1008

# websocket.go: the reason that goes with 1008.
MUST_SPEAK_DERP: Final = "client must speak the derp subprotocol"

# Longest message that is kept until it is whole; of longer ones each part is
# handed on as it comes.
_MAX_HELD_LEN: Final = 16 << 10

_FINAL: Final = 0x80
_FINAL_BINARY: Final = 0x82
_OPCODE: Final = 0x0F
_TEXT: Final = 0x1
_FIRST_CONTROL_OPCODE: Final = 0x8
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_LENGTH_IN_2_BYTES: Final = 126
_LENGTH_IN_8_BYTES: Final = 127
_MASK_LEN: Final = 4

_HEADER_2: Final = struct.Struct("!BB")
_HEADER_4: Final = struct.Struct("!BBH")
_HEADER_10_LEN: Final = 10

# accept.go: so many bytes, in base64.
_KEY_LEN: Final = 16


class WebsocketStream:
    """A stream of bytes on one end of a websocket, handshake already done.

    What arrives goes to ``receive_data``, which returns the bytes of DERP in
    it; ``data_to_send`` then has replies (Pong, Close) for the peer.

    Args:
        server: Which end this is.

    Attributes:
        closed: No more bytes will come: the peer has closed the websocket, or
            broke its rules.
        close_code: What the peer's Close said; 1005 if nothing, None if there
            was none.
        close_reason: The words with it.
        pongs: Answers to our pings, and other Pongs, so far.
    """

    __slots__ = (
        "_connection",
        "_fragmented",
        "_frame_left",
        "_held",
        "_masked",
        "_open",
        "_out",
        "_pong",
        "_server",
        "close_code",
        "close_reason",
        "closed",
        "pongs",
    )

    def __init__(self, *, server: bool) -> None:
        self._server = server
        self._masked = _MASKED if server else 0  # of what we receive
        self._connection = Connection(
            ConnectionType.SERVER if server else ConnectionType.CLIENT
        )
        # Neither end has sent a Close. wsproto knows too, but this is asked
        # for each message, and to thousands of clients what counts is how
        # many objects that touches.
        self._open = True
        # The part of a frame that waits for the rest of it.
        self._held = b""
        # Bytes of the current frame that wsproto still has to get.
        self._frame_left = 0
        # Between the first and the last frame of a message.
        self._fragmented = False
        self._out = b""
        self._pong: bytes | None = None
        self.closed = False
        self.close_code: int | None = None
        self.close_reason = ""
        self.pongs = 0

    def receive_data(self, data: bytes) -> bytes:
        """Add bytes from the network.

        Returns:
            The bytes of DERP in them. Whatever comes after the end of the
            websocket is ignored.

        Raises:
            RemoteProtocolError: The peer broke the protocol, or sent text.
                ``data_to_send`` has a Close to tell it so.
        """
        if self.closed:
            return b""
        if self._held:
            data, self._held = self._held + data, b""
        chunks: list[bytes] = []
        fed = 0
        position, end = 0, len(data)
        while position < end and not self.closed:
            if not self._frame_left:
                header = self._frame_header(data, position)
                if header is None:
                    self._held = data[position:]
                    break
                body, frame_end = header
                if self._is_whole_message(data, position):
                    if frame_end <= end:
                        chunks.append(self._unmasked(data, body, frame_end))
                        position = frame_end
                        continue
                    if frame_end - position <= _MAX_HELD_LEN:
                        self._held = data[position:]
                        break
                if data[position] & _OPCODE == _TEXT:
                    # Before wsproto can find that it is no UTF-8: that would
                    # depend on where the network has cut it.
                    raise self._fail(
                        CLOSE_UNSUPPORTED_DATA, "DERP comes in binary messages"
                    )
                if data[position] & _OPCODE < _FIRST_CONTROL_OPCODE:
                    self._fragmented = not data[position] & _FINAL
                self._frame_left = frame_end - position
            piece = data[position : position + self._frame_left]
            self._frame_left -= len(piece)
            position += len(piece)
            fed += 1
            if fed > MAX_SMALL_FRAMES:
                raise self._fail(CLOSE_POLICY_VIOLATION, "too many small frames")
            self._feed(piece, chunks)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _frame_header(self, data: bytes, start: int) -> tuple[int, int] | None:
        """Where a frame's payload starts and ends; None if that is not known."""
        if len(data) - start < _HEADER_2.size:
            return None
        length = data[start + 1] & _LENGTH
        body = start + _HEADER_2.size
        if length == _LENGTH_IN_2_BYTES:
            body = start + _HEADER_4.size
            length = int.from_bytes(data[start + 2 : body], "big")
        elif length == _LENGTH_IN_8_BYTES:
            body = start + _HEADER_10_LEN
            length = int.from_bytes(data[start + 2 : body], "big")
        if data[start + 1] & _MASKED:
            body += _MASK_LEN
        return None if len(data) < body else (body, body + length)

    def _is_whole_message(self, data: bytes, start: int) -> bool:
        """Whether the frame at ``start`` needs none of wsproto's judgement."""
        length = data[start + 1] & _LENGTH
        return (
            data[start] == _FINAL_BINARY
            and data[start + 1] & _MASKED == self._masked
            and not self._fragmented
            # The other lengths may be written longer than they need be, which
            # is an error.
            and (
                length < _LENGTH_IN_2_BYTES
                or (length == _LENGTH_IN_2_BYTES and self._is_minimal(data, start))
            )
        )

    @staticmethod
    def _is_minimal(data: bytes, start: int) -> bool:
        return data[start + 2] != 0 or data[start + 3] >= _LENGTH_IN_2_BYTES

    def _unmasked(self, data: bytes, body: int, end: int) -> bytes:
        if not self._masked:
            return data[body:end]
        # One XOR of two long integers. For a packet, wsproto takes about six
        # times as long in all (1,400 bytes: 40 us against 6).
        length = end - body
        mask = data[body - _MASK_LEN : body] * (length // _MASK_LEN + 1)
        return (
            int.from_bytes(data[body:end], "little")
            ^ int.from_bytes(mask[:length], "little")
        ).to_bytes(length, "little")

    def _feed(self, data: bytes, chunks: list[bytes]) -> None:
        """Let wsproto read (a part of) one frame."""
        self._connection.receive_data(data)
        for event in self._connection.events():
            match event:
                case BytesMessage():
                    chunks.append(bytes(event.data))
                case Ping():
                    # RFC 6455 5.5.3: of Pings not answered yet, the last one
                    # is enough. So a flood of them costs no memory.
                    self._pong = bytes(self._connection.send(event.response()))
                case CloseConnection():
                    self._handle_close(event)
                case _:  # a Pong, also one nobody asked for: RFC 6455 5.5.3
                    self.pongs += 1

    def _handle_close(self, event: CloseConnection) -> None:
        if self._connection.state in (
            ConnectionState.OPEN,
            ConnectionState.LOCAL_CLOSING,
        ):
            # Not a Close that came: wsproto's word for a broken rule.
            raise self._fail(event.code, event.reason or "broken frame")
        self._open = False
        self.closed = True
        self.close_code = int(event.code)
        self.close_reason = event.reason or ""
        if self._connection.state is ConnectionState.REMOTE_CLOSING:
            self._pong = None
            self._out += self._connection.send(event.response())

    def _fail(self, code: int, reason: str) -> RemoteProtocolError:
        self.close(code, reason)
        self.closed = True
        return RemoteProtocolError(f"websocket: {reason}")

    def encode(self, data: bytes) -> bytes:
        """Put bytes of DERP into messages.

        Args:
            data: Any number of bytes, whole frames or not.

        Returns:
            Messages of at most MAX_MESSAGE_LEN bytes each, for the network.

        Raises:
            LocalProtocolError: One of the ends has sent a Close.
        """
        if not self._open:
            raise LocalProtocolError("the websocket is closed")
        length = len(data)
        if self._server and _LENGTH_IN_2_BYTES <= length <= MAX_MESSAGE_LEN:
            # As in ``_message``: the short way of a node to thousands.
            return _HEADER_4.pack(_FINAL_BINARY, _LENGTH_IN_2_BYTES, length) + data
        if 0 < length <= MAX_MESSAGE_LEN:
            return self._message(data)
        return b"".join(
            self._message(data[start : start + MAX_MESSAGE_LEN])
            for start in range(0, len(data), MAX_MESSAGE_LEN)
        )

    def _message(self, data: bytes) -> bytes:
        if not self._server:
            return bytes(self._connection.send(BytesMessage(data=data)))
        length = len(data)
        if length < _LENGTH_IN_2_BYTES:
            return _HEADER_2.pack(_FINAL_BINARY, length) + data
        return _HEADER_4.pack(_FINAL_BINARY, _LENGTH_IN_2_BYTES, length) + data

    def close(self, code: int = CLOSE_NORMAL, reason: str = "") -> None:
        """Begin to close; ``data_to_send`` then has the Close.

        Args:
            code: Of RFC 6455 7.4.1.
            reason: For people; what is over 123 bytes is cut off.
        """
        if self._open:
            self._open = False
            self._pong = None
            self._out += self._connection.send(
                CloseConnection(code=code, reason=reason)
            )

    def encode_ping(self) -> bytes:
        """A Ping for the network, which the peer's Pong will answer.

        Raises:
            LocalProtocolError: One of the ends has sent a Close.
        """
        if not self._open:
            raise LocalProtocolError("the websocket is closed")
        return bytes(self._connection.send(Ping()))

    @property
    def pending(self) -> bool:
        """Whether ``data_to_send`` has something."""
        return bool(self._out) or self._pong is not None

    def data_to_send(self) -> bytes:
        """Take the replies to what was received: Pong and Close."""
        out, self._out = (self._pong or b"") + self._out, b""
        self._pong = None
        return out


# -- the relay's end of the handshake ---------------------------------------


@dataclass(frozen=True, slots=True)
class WebsocketAnswer:
    """What a relay answers to the request for a websocket.

    Attributes:
        status: 101, or the status of a refusal.
        headers: That go with it, as Go spells them.
        text: Of a refusal; empty with 101.
        speaks_derp: With 101: the subprotocol is ``derp``. If not, the
            websocket is to be closed at once with CLOSE_POLICY_VIOLATION and
            MUST_SPEAK_DERP.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    text: str = ""
    speaks_derp: bool = False

    def text_headers(self) -> tuple[tuple[str, str], ...]:
        """The headers as text."""
        return tuple((n.decode(), v.decode("latin-1")) for n, v in self.headers)


def check_websocket_request(
    headers: Headers,
    method: bytes,
    *,
    http_version: bytes = b"1.1",
    subprotocol: bytes | None = SUBPROTOCOL,
) -> WebsocketAnswer:
    """Judge a request of kind WEBSOCKET, as coder/websocket's accept.go does.

    Any Origin will do, and no extension is ever accepted: packets do not
    compress, and Safari's compression is broken.

    Args:
        headers: Of the request, in their order.
        method: Of the request.
        http_version: ``1.0`` or ``1.1``.
        subprotocol: Agreed on if it is offered; None for none at all.
    """
    fields = list(headers)
    refusal = _refusal(fields, method, http_version)
    if refusal is not None:
        return refusal
    key = first_header(fields, b"Sec-WebSocket-Key")
    answer = [
        (b"Connection", b"Upgrade"),
        (b"Sec-Websocket-Accept", generate_accept_token(key)),
    ]
    # accept.go selectSubprotocol ignores case and echoes what the client
    # wrote; websocket.go then wants it to be lower case.
    offered = _tokens(fields, b"Sec-WebSocket-Protocol")
    chosen = next((token for token in offered if token.lower() == subprotocol), None)
    if chosen is not None:
        answer.append((b"Sec-Websocket-Protocol", chosen))
    answer.append((b"Upgrade", b"websocket"))
    return WebsocketAnswer(
        101, headers=tuple(answer), speaks_derp=chosen == SUBPROTOCOL
    )


_UPGRADE: Final = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))


def _refusal(
    headers: Sequence[tuple[bytes, bytes]], method: bytes, http_version: bytes
) -> WebsocketAnswer | None:
    """accept.go verifyClientRequest: the same checks, order and words."""
    if http_version < b"1.1":
        shown = _quoted(b"HTTP/" + http_version)
        return _violation(426, f"handshake request must be at least HTTP/1.1: {shown}")
    for name, token in ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")):
        if not _has_token(headers, name, token):
            value = _quoted(first_header(headers, name))
            return _violation(
                426,
                f"{name.decode()} header {value} does not contain {token.decode()}",
                _UPGRADE,
            )
    if method != b"GET":
        return _violation(
            405, f"handshake request method is not GET but {_quoted(method)}"
        )
    version = first_header(headers, b"Sec-WebSocket-Version")
    if version != b"13":
        return WebsocketAnswer(
            400,
            headers=((b"Sec-Websocket-Version", b"13"),),
            text="unsupported WebSocket protocol version (only 13 is supported): "
            + _quoted(version),
        )
    keys = [value for name, value in headers if name.lower() == b"sec-websocket-key"]
    if not keys:
        return _violation(400, "missing Sec-WebSocket-Key")
    if len(keys) > 1:
        return _violation(400, "multiple Sec-WebSocket-Key headers")
    if not _is_key(keys[0].strip()):
        return _violation(
            400,
            f"invalid Sec-WebSocket-Key {_quoted(keys[0].strip())}, must be a "
            "16 byte base64 encoded string",
        )
    return None


def _violation(
    status: int, text: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> WebsocketAnswer:
    return WebsocketAnswer(
        status, headers=headers, text=f"WebSocket protocol violation: {text}"
    )


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _KEY_LEN
    except binascii.Error:
        return False


def _quoted(value: bytes) -> str:
    """Like Go's %q, for the characters that a header can have."""
    text = value.decode("latin-1").replace("\\", "\\\\").replace('"', '\\"')
    shown = (c if " " <= c <= "~" else f"\\x{ord(c):02x}" for c in text)
    return f'"{"".join(shown)}"'


def _has_token(headers: Headers, name: bytes, token: bytes) -> bool:
    return token.lower() in (value.lower() for value in _tokens(headers, name))


def _tokens(headers: Headers, name: bytes) -> list[bytes]:
    """accept.go headerTokens: the parts of all headers of a name."""
    wanted = name.lower()
    return [
        token.strip()
        for key, value in headers
        if key.lower() == wanted
        for token in bytes(value).split(b",")
    ]


def encode_websocket_response(answer: WebsocketAnswer) -> bytes:
    """The head of a 101.

    Raises:
        LocalProtocolError: The answer is a refusal.
    """
    if answer.status != 101:
        raise LocalProtocolError(f"status {answer.status} opens no websocket")
    lines = [b"HTTP/1.1 101 Switching Protocols\r\n"]
    lines += [b"%b: %b\r\n" % header for header in answer.headers]
    return b"".join([*lines, b"\r\n"])


# -- the client's end of the handshake --------------------------------------


def generate_websocket_key() -> str:
    """A new random ``Sec-WebSocket-Key``."""
    return generate_nonce().decode()


def encode_websocket_request(
    host: str,
    key: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    target: str = DERP_PATH,
    subprotocol: bytes | None = SUBPROTOCOL,
) -> bytes:
    """The request for a websocket.

    Args:
        host: Value of ``Host``, with the port if it is not the scheme's own.
        key: From :func:`generate_websocket_key`; new for each request.
        headers: More headers, for proxies on the way.
        target: Path and query.
        subprotocol: What to speak; None to offer nothing.

    Raises:
        LocalProtocolError: Something has characters that HTTP forbids.
    """
    ours: tuple[tuple[str, str], ...] = (
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key),
    )
    if subprotocol is not None:
        ours += (("Sec-WebSocket-Protocol", subprotocol.decode()),)
    return encode_request_head(host, (*ours, *headers), target=target)


def check_websocket_response(
    head: ResponseHead, key: str, *, subprotocol: bytes | None = SUBPROTOCOL
) -> None:
    """Judge the answer, as coder/websocket's dial.go does.

    A server that names no subprotocol is taken at its word.

    Args:
        head: The answer; ``head.rest`` are bytes of the websocket.
        key: That the request had.
        subprotocol: Likewise.

    Raises:
        RemoteProtocolError: There is no websocket, or not the one we want.
    """
    fields = head.headers
    problem: str | None = None
    chosen = first_header(fields, b"Sec-WebSocket-Protocol")
    accept = generate_accept_token(key.encode())
    if head.status != 101:
        problem = f"status {head.status}, not 101"
    elif not _has_token(fields, b"Connection", b"Upgrade"):
        problem = "no Connection: Upgrade"
    elif not _has_token(fields, b"Upgrade", b"websocket"):
        problem = "no Upgrade: websocket"
    elif first_header(fields, b"Sec-WebSocket-Accept") != accept:
        problem = "a wrong Sec-WebSocket-Accept"
    elif chosen and chosen.lower() != subprotocol:
        problem = f"subprotocol {_quoted(chosen)}"
    elif any(_tokens(fields, b"Sec-WebSocket-Extensions")):
        problem = "extensions that were not offered"
    if problem is not None:
        raise RemoteProtocolError(f"the answer to the websocket request has {problem}")
