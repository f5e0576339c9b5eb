"""A DERP connection without its socket, for both ends.

Bytes from the network go in with ``receive_data``; what they mean comes out
of ``next_event``, one thing at a time. What the connection has to say by
itself (its part of the handshake) is in ``data_to_send``; everything else is
put into bytes by ``encode``. HTTP, TLS and websockets are beneath this.

The life of both ends is in two tables, CLIENT_TRANSITIONS and
SERVER_TRANSITIONS. It is that of Go's ends (``derp_client.go``,
``derpserver.go``), which wait for as little as possible: a client may send
frames as soon as ClientInfo is out, and ServerInfo may come at any time.

``next_event`` raises RemoteProtocolError for what the peer did, also again
and again afterwards; ``encode`` and ``admit`` raise LocalProtocolError.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from tailnet.derp import frames
from tailnet.derp.frame_buffer import FrameBuffer
from tailnet.derp.frames import (
    FRAME_HEADER,
    KEEP_ALIVE,
    MAX_CLIENT_INFO_LEN,
    MAX_PACKET_SIZE,
    MAX_PING_LEN,
    PING_LEN,
    ClientFrame,
    ClosePeer,
    ForwardPacket,
    FrameType,
    Health,
    KeepAlive,
    NotePreferred,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    SendPacket,
    ServerFrame,
    UnknownFrame,
    WatchConns,
    decode_client_frame,
    decode_server_frame,
)
from tailnet.derp.handshake import (
    MAX_SERVER_KEY_LEN,
    MIN_CLIENT_INFO_LEN,
    ClientInfo,
    ServerInfo,
    decode_client_info,
    decode_server_info,
    decode_server_key,
    encode_client_info,
    encode_server_info,
    encode_server_key,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tailnet.keys import KEY_LEN, NodePrivate, NodePublic

__all__ = (
    "CLIENT_BODY_SIZES",
    "CLIENT_TRANSITIONS",
    "SERVER_TRANSITIONS",
    "ClientConnection",
    "ClientEvent",
    "ClientHello",
    "ServerConnection",
    "ServerEvent",
    "ServerGreeting",
    "State",
    "Step",
    "encode_client_frame",
    "encode_server_frame",
)


class State(enum.Enum):
    """Where in its life a connection is, seen from one end."""

    WAIT_SERVER_KEY = "wait for ServerKey"  # client
    WAIT_CLIENT_INFO = "wait for ClientInfo"  # server
    WAIT_ADMISSION = "wait for admission"  # server: by our own side
    OPEN = "open"
    FAILED = "failed"


class Step(enum.Enum):
    """What can happen to a connection."""

    SERVER_KEY = "ServerKey"
    CLIENT_INFO = "ClientInfo"
    ADMIT = "admit"
    FRAME = "frame"  # either way
    FAULT = "fault"  # of the peer


# With fast start a client begins in OPEN. A relay's ServerKey is then a frame
# like any other that is of no interest.
CLIENT_TRANSITIONS: Final[Mapping[tuple[State, Step], State]] = {
    (State.WAIT_SERVER_KEY, Step.SERVER_KEY): State.OPEN,
    (State.WAIT_SERVER_KEY, Step.FAULT): State.FAILED,
    (State.OPEN, Step.FRAME): State.OPEN,
    (State.OPEN, Step.FAULT): State.FAILED,
    (State.FAILED, Step.FAULT): State.FAILED,
}
SERVER_TRANSITIONS: Final[Mapping[tuple[State, Step], State]] = {
    (State.WAIT_CLIENT_INFO, Step.CLIENT_INFO): State.WAIT_ADMISSION,
    (State.WAIT_CLIENT_INFO, Step.FAULT): State.FAILED,
    (State.WAIT_ADMISSION, Step.ADMIT): State.OPEN,
    (State.OPEN, Step.FRAME): State.OPEN,
    (State.OPEN, Step.FAULT): State.FAILED,
    (State.FAILED, Step.FAULT): State.FAILED,
}

# derpserver.go handleFrame*: the sizes of bodies by frame type. Other types are
# skipped, with bodies of up to 4 GiB, so their length costs nothing but time.
CLIENT_BODY_SIZES: Final[Mapping[int, range]] = {
    FrameType.SEND_PACKET: range(KEY_LEN, KEY_LEN + MAX_PACKET_SIZE + 1),
    FrameType.NOTE_PREFERRED: range(1, 2),
    FrameType.FORWARD_PACKET: range(2 * KEY_LEN, 2 * KEY_LEN + MAX_PACKET_SIZE + 1),
    FrameType.WATCH_CONNS: range(1),
    FrameType.CLOSE_PEER: range(KEY_LEN, KEY_LEN + 1),
    FrameType.PING: range(PING_LEN, MAX_PING_LEN + 1),
}


@dataclass(frozen=True, slots=True)
class ServerGreeting:
    """The relay has told its key; our ClientInfo is in ``data_to_send``."""

    key: NodePublic


@dataclass(frozen=True, slots=True)
class ClientHello:
    """A client has proven its key. It waits for ``admit``, or for the end."""

    key: NodePublic
    info: ClientInfo


ClientEvent: TypeAlias = ServerGreeting | ServerInfo | ServerFrame
ServerEvent: TypeAlias = ClientHello | ClientFrame


class _Connection:
    """What both ends have in common."""

    __slots__ = ("_buffer", "_fault", "_out", "_private", "_transitions", "state")

    def __init__(
        self,
        private_key: NodePrivate,
        state: State,
        transitions: Mapping[tuple[State, Step], State],
        out: bytes,
    ) -> None:
        self.state = state
        self._transitions = transitions
        self._private = private_key
        self._buffer = FrameBuffer()
        self._out = out
        self._fault = ""

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the network; then take events until there are none."""
        if self.state is not State.FAILED:
            self._buffer.receive_data(data)

    def data_to_send(self) -> bytes:
        """Take what this end has to say by itself. Whole frames, or nothing."""
        out, self._out = self._out, b""
        return out

    def take_rest(self) -> bytes:
        """Take all bytes that no event has used, to go on without this object."""
        return self._buffer.take_rest()

    def _move(self, step: Step) -> None:
        state = self._transitions.get((self.state, step))
        if state is None:
            raise LocalProtocolError(f"no {step.value} in state {self.state.value!r}")
        self.state = state

    def _fail(self, exc: RemoteProtocolError) -> None:
        self._move(Step.FAULT)
        self._fault = str(exc)
        self._buffer.take_rest()

    def _raise_fault(self) -> None:
        if self.state is State.FAILED:
            raise RemoteProtocolError(self._fault)

    def _check_header(
        self, frame_type: FrameType, *, min_body_len: int, max_body_len: int
    ) -> bool:
        """Judge a handshake frame by its header, before its body is there.

        Returns:
            Whether there is a header.
        """
        header = self._buffer.next_header()
        if header is None:
            return False
        found_type, body_len = header
        if found_type != frame_type:
            raise RemoteProtocolError(
                f"expected frame type {frame_type:#04x}, got {found_type:#04x}"
            )
        if not min_body_len <= body_len <= max_body_len:
            raise RemoteProtocolError(
                f"a frame of type {frame_type:#04x} cannot have {body_len} bytes here"
            )
        return True


class ClientConnection(_Connection):
    """The client's end.

    Args:
        private_key: Of the client.
        info: What to tell the relay.
        server_key: The relay's key if it is known already, for fast start:
            ClientInfo is then in ``data_to_send`` at once.

    Attributes:
        state: Where in its life the connection is.
        server_key: The relay's key, or None until it is known.
    """

    __slots__ = ("_info", "server_key")

    def __init__(
        self,
        private_key: NodePrivate,
        info: ClientInfo,
        *,
        server_key: NodePublic | None = None,
    ) -> None:
        fast = server_key is not None
        super().__init__(
            private_key,
            State.OPEN if fast else State.WAIT_SERVER_KEY,
            CLIENT_TRANSITIONS,
            b"",
        )
        self._info = info
        self.server_key = server_key
        if server_key is not None:
            self._out = encode_client_info(private_key, server_key, info)

    def next_event(self) -> ClientEvent | None:
        """Take the next thing that the relay said, or None until more comes.

        Frames that Go's client drops (too short) are dropped here too; what
        it does not know is an UnknownFrame, to be ignored.

        Raises:
            RemoteProtocolError: Close the connection.
        """
        self._raise_fault()
        try:
            if self.state is State.WAIT_SERVER_KEY:
                return self._next_greeting()
            return self._next_frame()
        except RemoteProtocolError as exc:
            self._fail(exc)
            raise

    def _next_greeting(self) -> ServerGreeting | None:
        if not self._check_header(
            FrameType.SERVER_KEY, min_body_len=0, max_body_len=MAX_SERVER_KEY_LEN
        ):
            return None
        raw = self._buffer.next_frame()
        if raw is None:
            return None
        self.server_key = decode_server_key(raw)
        self._move(Step.SERVER_KEY)
        self._out += encode_client_info(self._private, self.server_key, self._info)
        return ServerGreeting(self.server_key)

    def _next_frame(self) -> ServerInfo | ServerFrame | None:
        while (raw := self._buffer.next_frame()) is not None:
            self._move(Step.FRAME)
            if raw.type == FrameType.SERVER_INFO and self.server_key is not None:
                return decode_server_info(self._private, self.server_key, raw)
            if (frame := decode_server_frame(raw)) is not None:
                return frame
        return None

    def encode(self, frame: ClientFrame | Pong) -> bytes:
        """Put a frame for the relay into bytes.

        Raises:
            LocalProtocolError: The relay has not greeted yet, the connection
                has failed, or the frame cannot be sent.
        """
        self._move(Step.FRAME)
        return encode_client_frame(frame)


class ServerConnection(_Connection):
    """The relay's end.

    Args:
        private_key: Of the relay. ServerKey is in ``data_to_send`` at once.

    Attributes:
        state: Where in its life the connection is.
        client_key: The client's key, or None until it has proven it.
    """

    __slots__ = ("_skip", "client_key")

    def __init__(self, private_key: NodePrivate) -> None:
        super().__init__(
            private_key,
            State.WAIT_CLIENT_INFO,
            SERVER_TRANSITIONS,
            encode_server_key(private_key.public()),
        )
        self.client_key: NodePublic | None = None
        # Bytes of an unknown frame that are still to come.
        self._skip = 0

    def next_event(self) -> ServerEvent | None:
        """Take the next thing that the client said, or None until more comes.

        After ClientHello there is nothing until ``admit``: whoever stops
        reading there bounds what an unknown client can make it keep.

        Raises:
            RemoteProtocolError: Close the connection.
        """
        self._raise_fault()
        try:
            if self.state is State.WAIT_CLIENT_INFO:
                return self._next_hello()
            if self.state is State.OPEN:
                return self._next_frame()
        except RemoteProtocolError as exc:
            self._fail(exc)
            raise
        return None

    def _next_hello(self) -> ClientHello | None:
        if not self._check_header(
            FrameType.CLIENT_INFO,
            min_body_len=MIN_CLIENT_INFO_LEN,
            max_body_len=MAX_CLIENT_INFO_LEN,
        ):
            return None
        raw = self._buffer.next_frame()
        if raw is None:
            return None
        key, info = decode_client_info(self._private, raw)
        self._move(Step.CLIENT_INFO)
        self.client_key = key
        return ClientHello(key, info)

    def admit(self, info: ServerInfo | None = None) -> None:
        """Let the client in; ``data_to_send`` then has ServerInfo.

        Args:
            info: What to tell the client, or None for the usual.

        Raises:
            LocalProtocolError: There is no client waiting.
        """
        self._move(Step.ADMIT)
        if self.client_key is None:
            raise AssertionError  # the table says otherwise
        self._out += encode_server_info(
            self._private, self.client_key, info or ServerInfo()
        )

    def _next_frame(self) -> ClientFrame | None:
        self._skip -= self._buffer.discard(self._skip)
        header = None if self._skip else self._buffer.next_header()
        if header is None:
            return None
        frame_type, body_len = header
        sizes = CLIENT_BODY_SIZES.get(frame_type)
        if sizes is None:
            self._move(Step.FRAME)
            self._buffer.discard(FRAME_HEADER.size)
            self._skip = body_len - self._buffer.discard(body_len)
            return UnknownFrame(frame_type, body_len)
        if body_len not in sizes:
            # Go judges the header too: nobody waits for a body that will not do.
            raise RemoteProtocolError(
                f"a frame of type {frame_type:#04x} cannot have a {body_len}-byte body"
            )
        raw = self._buffer.next_frame()
        if raw is None:
            return None
        self._move(Step.FRAME)
        return decode_client_frame(raw)

    def encode(self, frame: ServerFrame) -> bytes:
        """Put a frame for the client into bytes.

        Raises:
            LocalProtocolError: The client is not admitted, the connection has
                failed, or the frame cannot be sent.
        """
        self._move(Step.FRAME)
        return encode_server_frame(frame)


def encode_client_frame(frame: ClientFrame | Pong) -> bytes:
    """Encode any frame that a client may send, by its type.

    Raises:
        LocalProtocolError: The frame is unknown, or too long.
    """
    match frame:
        case SendPacket():
            return frames.encode_send_packet(frame.dst, frame.packet)
        case ForwardPacket():
            return frames.encode_forward_packet(frame.src, frame.dst, frame.packet)
        case NotePreferred():
            return frames.encode_note_preferred(preferred=frame.preferred)
        case WatchConns():
            return frames.encode_watch_conns()
        case ClosePeer():
            return frames.encode_close_peer(frame.peer)
        case Ping():
            return frames.encode_ping(frame.data)
        case Pong():
            return frames.encode_pong(frame.data)
        case UnknownFrame():
            raise _unknown(frame)
        case _:
            assert_never(frame)


def encode_server_frame(frame: ServerFrame) -> bytes:
    """Encode any frame that a relay may send, by its type.

    Raises:
        LocalProtocolError: The frame is unknown, or too long.
    """
    match frame:
        case RecvPacket():
            return frames.encode_recv_packet(frame.src, frame.packet)
        case KeepAlive():
            return KEEP_ALIVE
        case PeerGone():
            return frames.encode_peer_gone(frame.peer, frame.reason)
        case PeerPresent():
            return frames.encode_peer_present(frame)
        case Ping():
            return frames.encode_ping(frame.data)
        case Pong():
            return frames.encode_pong(frame.data)
        case Health():
            return frames.encode_health(frame.problem)
        case Restarting():
            return frames.encode_restarting(frame.reconnect_in, frame.try_for)
        case UnknownFrame():
            raise _unknown(frame)
        case _:
            assert_never(frame)


def _unknown(frame: UnknownFrame) -> LocalProtocolError:
    return LocalProtocolError(f"frame type {frame.type:#04x} has no known body")
