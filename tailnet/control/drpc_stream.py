"""One dRPC call as a state machine, for both ends: no I/O.

storj/drpc ``drpcstream/stream.go`` and ``drpcmanager/manager.go``, for the
one call that Coder has on a transport. What ``handle_packet`` returns says
what a packet means; ``encode_*`` gives the bytes of the next packet, and
notes what it means for the call.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tailnet.control.drpc import (
    MAX_PACKET_LEN,
    SPLIT_LEN,
    Kind,
    Packet,
    decode_error,
    decode_metadata,
    encode_error,
    encode_metadata,
    encode_packet,
    encode_varint,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError, RpcError

__all__ = (
    "CALL_TRANSITIONS",
    "MAX_METHOD_LEN",
    "CallInput",
    "CallState",
    "DrpcStream",
    "Ended",
    "Invoked",
    "Message",
    "SendClosed",
    "StreamEvent",
)

# Ours: bytes of a method's name. Coder's longest has 72.
MAX_METHOD_LEN: Final = 1024

_MESSAGE_DONE: Final = bytes((Kind.MESSAGE << 1 | 1,))


class CallState(enum.Enum):
    """Who may still send messages."""

    OPEN = "open"
    SEND_CLOSED = "send closed"  # we have sent CloseSend
    RECEIVE_CLOSED = "receive closed"  # the peer has
    TERMINATED = "terminated"


class CallInput(enum.Enum):
    """What moves a call from one state to the next."""

    SEND_CLOSE_SEND = "send close send"
    RECEIVE_CLOSE_SEND = "receive close send"
    TERMINATE = "terminate"  # Close, Error or Cancel, sent or received


# stream.go terminateIfBothClosed, and that CloseSend twice is no error.
CALL_TRANSITIONS: Final[Mapping[tuple[CallState, CallInput], CallState]] = {
    (CallState.OPEN, CallInput.SEND_CLOSE_SEND): CallState.SEND_CLOSED,
    (CallState.OPEN, CallInput.RECEIVE_CLOSE_SEND): CallState.RECEIVE_CLOSED,
    (CallState.OPEN, CallInput.TERMINATE): CallState.TERMINATED,
    (CallState.SEND_CLOSED, CallInput.SEND_CLOSE_SEND): CallState.SEND_CLOSED,
    (CallState.SEND_CLOSED, CallInput.RECEIVE_CLOSE_SEND): CallState.TERMINATED,
    (CallState.SEND_CLOSED, CallInput.TERMINATE): CallState.TERMINATED,
    (CallState.RECEIVE_CLOSED, CallInput.SEND_CLOSE_SEND): CallState.TERMINATED,
    (CallState.RECEIVE_CLOSED, CallInput.RECEIVE_CLOSE_SEND): CallState.RECEIVE_CLOSED,
    (CallState.RECEIVE_CLOSED, CallInput.TERMINATE): CallState.TERMINATED,
    (CallState.TERMINATED, CallInput.SEND_CLOSE_SEND): CallState.TERMINATED,
    (CallState.TERMINATED, CallInput.RECEIVE_CLOSE_SEND): CallState.TERMINATED,
    (CallState.TERMINATED, CallInput.TERMINATE): CallState.TERMINATED,
}

_NO_SENDING: Final = frozenset({CallState.SEND_CLOSED, CallState.TERMINATED})


@dataclass(frozen=True, slots=True)
class Invoked:
    """The client wants this method called."""

    method: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """A message."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SendClosed:
    """The peer sends no more messages."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer has ended the call both ways."""

    error: RpcError | None = None


StreamEvent = Invoked | Message | SendClosed | Ended


class DrpcStream:
    """One end of a call.

    Args:
        server: Whether this end waits for the Invoke. It learns the stream id
            from it; a client uses 1.

    Attributes:
        state: Where the call is.
    """

    __slots__ = ("_invoked", "_message_head", "_metadata", "_next_id", "_stream_id",
                 "state")  # fmt: skip

    def __init__(self, *, server: bool) -> None:
        self.state = CallState.OPEN
        self._invoked = not server
        self._metadata: tuple[int, dict[str, str]] | None = None
        self._next_id = 1
        self._set_stream_id(1)

    def _set_stream_id(self, stream_id: int) -> None:
        self._stream_id = stream_id
        self._message_head = _MESSAGE_DONE + encode_varint(stream_id)

    # -- receiving ----------------------------------------------------------

    def handle_packet(self, packet: Packet) -> StreamEvent | None:
        """What a packet means; None if it is to be ignored.

        Raises:
            RemoteProtocolError: The peer broke the protocol; the transport of
                this call is of no more use.
        """
        if not self._invoked:
            return self._handle_invoke(packet)
        if packet.stream_id != self._stream_id:
            # Ids never go down, so it is a later one.
            if packet.control:
                return None
            raise RemoteProtocolError("a second call on the transport of the first")
        if self.state is CallState.TERMINATED:
            return None
        match packet.kind:
            case Kind.MESSAGE:
                if self.state is CallState.RECEIVE_CLOSED:
                    return None  # pktbuf.go Put drops it
                return Message(packet.data)
            case Kind.CLOSE_SEND:
                if self.state is CallState.RECEIVE_CLOSED:
                    return None
                self._move(CallInput.RECEIVE_CLOSE_SEND)
                return SendClosed()
            case Kind.CLOSE | Kind.CANCEL:
                self._move(CallInput.TERMINATE)
                return Ended()
            case Kind.ERROR:
                self._move(CallInput.TERMINATE)
                return Ended(decode_error(packet.data))
            case Kind.INVOKE:
                raise RemoteProtocolError("invoke on existing stream")
        if packet.control:
            return None
        raise RemoteProtocolError(f"unknown packet kind: {packet.kind}")

    def _handle_invoke(self, packet: Packet) -> Invoked | None:
        match packet.kind:
            case Kind.INVOKE_METADATA:
                self._metadata = packet.stream_id, decode_metadata(packet.data)
                return None
            case Kind.INVOKE:
                if len(packet.data) > MAX_METHOD_LEN:
                    raise RemoteProtocolError(
                        f"method name of {len(packet.data)} bytes, "
                        f"the limit is {MAX_METHOD_LEN}"
                    )
                stream_id, metadata = self._metadata or (0, {})
                self._invoked, self._metadata = True, None
                self._set_stream_id(packet.stream_id)
                method = packet.data.decode("utf-8", "replace")
                return Invoked(
                    method, metadata if stream_id == packet.stream_id else {}
                )
        if packet.control:
            return None
        # manager.go would wait for an Invoke that can no longer come.
        raise RemoteProtocolError(f"packet of kind {packet.kind} before the invoke")

    def _move(self, cause: CallInput) -> None:
        self.state = CALL_TRANSITIONS[self.state, cause]

    # -- sending ------------------------------------------------------------

    @property
    def is_writable(self) -> bool:
        """Whether messages may still be sent."""
        return self.state not in _NO_SENDING

    def _take_id(self) -> int:
        message_id, self._next_id = self._next_id, self._next_id + 1
        return message_id

    def message_header(self, size: int) -> bytes:
        """What goes in front of a message that fits one frame.

        Args:
            size: Of the message, at most SPLIT_LEN: not checked, as little as
                ``is_writable`` is.
        """
        message_id = self._next_id
        self._next_id = message_id + 1
        return self._message_head + encode_varint(message_id) + encode_varint(size)

    def encode_message(self, data: bytes) -> bytes:
        """Encode a message of any size.

        Raises:
            LocalProtocolError: It is longer than MAX_PACKET_LEN, or there may
                be no more messages.
        """
        if not self.is_writable:
            raise LocalProtocolError(f"no message on a call that is {self.state.value}")
        if len(data) <= SPLIT_LEN:
            return self.message_header(len(data)) + data
        if len(data) > MAX_PACKET_LEN:
            raise LocalProtocolError(
                f"message of {len(data)} bytes, the limit is {MAX_PACKET_LEN}"
            )
        return encode_packet(Kind.MESSAGE, self._stream_id, self._take_id(), data)

    def encode_invoke(
        self, method: str, metadata: Mapping[str, str] | None = None
    ) -> bytes:
        """Encode the start of a call: the client's first packet."""
        wire = b""
        if metadata:
            wire = self._encode(Kind.INVOKE_METADATA, encode_metadata(dict(metadata)))
        return wire + self._encode(Kind.INVOKE, method.encode())

    def encode_close_send(self) -> bytes:
        """Encode CloseSend: no more messages from here. Empty if it was said."""
        if not self.is_writable:
            return b""
        wire = self._encode(Kind.CLOSE_SEND)
        self._move(CallInput.SEND_CLOSE_SEND)
        return wire

    def encode_close(self) -> bytes:
        """Encode Close: the call is over. Empty if it is known to be."""
        return self._terminate(Kind.CLOSE)

    def encode_error(self, error: RpcError) -> bytes:
        """Encode Error: the call is over. Empty if it is known to be."""
        return self._terminate(Kind.ERROR, encode_error(error))

    def _terminate(self, kind: Kind, data: bytes = b"") -> bytes:
        if self.state is CallState.TERMINATED:
            return b""
        self._move(CallInput.TERMINATE)
        return self._encode(kind, data)

    def _encode(self, kind: Kind, data: bytes = b"") -> bytes:
        return encode_packet(kind, self._stream_id, self._take_id(), data)
