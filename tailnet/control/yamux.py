"""One yamux session as a state machine, for both roles: no I/O, no clock.

Many streams over one connection, each with flow control of its own.
Behaviour: hashicorp/yamux ``session.go`` and ``stream.go``, as they are with
Go's default configuration.

What arrives goes to ``receive_data``; ``next_event`` then says what it means,
until it returns None. What has to be sent besides the data of the streams is
in ``data_to_send``. Time is an argument, in monotonic seconds.

Where Go tolerates, so does this: frames for streams that are not there (any
more), ACKs of what nobody asked, data behind a FIN. Where Go ends the
session, so does this, by RemoteProtocolError. Ours on top: a limit of open
streams, and the parity of stream ids is checked.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tailnet.control.yamux_frames import (
    ACK,
    FIN,
    HEADER_LEN,
    INITIAL_WINDOW,
    MAX_STREAM_ID,
    RST,
    SYN,
    FrameType,
    GoAwayCode,
    decode_header,
    encode_header,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError

__all__ = (
    "CLOSE_TIMEOUT",
    "MAX_STREAMS",
    "MAX_UNACKNOWLEDGED",
    "OPEN_TIMEOUT",
    "TRANSITIONS",
    "CreditReceived",
    "DataReceived",
    "GoAwayReceived",
    "PongReceived",
    "Role",
    "StreamAccepted",
    "StreamEnded",
    "StreamInput",
    "StreamOpened",
    "StreamReset",
    "StreamState",
    "YamuxConnection",
    "YamuxEvent",
    "YamuxStream",
)

# mux.go DefaultConfig: AcceptBacklog. Streams that may be open on our side
# before the peer has acknowledged any.
MAX_UNACKNOWLEDGED: Final = 256

# Ours: streams of the peer's at one time. In Go the accept backlog limits
# only what is not yet served, and every goroutine is served at once. A client
# has five, an agent some twenty.
MAX_STREAMS: Final = 256

# mux.go DefaultConfig: StreamOpenTimeout, StreamCloseTimeout. Seconds.
OPEN_TIMEOUT: Final = 75.0
CLOSE_TIMEOUT: Final = 300.0


class Role(enum.Enum):
    """Which end of the connection; the client's streams have odd ids."""

    CLIENT = "client"
    SERVER = "server"


class StreamState(enum.Enum):
    """stream.go streamState. The last two are never seen in the table."""

    SYN_SENT = "syn sent"
    ESTABLISHED = "established"
    LOCAL_CLOSE = "local close"
    REMOTE_CLOSE = "remote close"
    CLOSED = "closed"
    RESET = "reset"


class StreamInput(enum.Enum):
    """What moves a stream from one state to the next."""

    ACK = "ack"
    REMOTE_FIN = "remote fin"
    LOCAL_FIN = "local fin"
    RST = "rst"


# stream.go processFlags and Close. What is missing is not allowed. The
# streams that we accept are acknowledged at once, so that there is no state
# for them in between.
TRANSITIONS: Final[Mapping[tuple[StreamState, StreamInput], StreamState]] = {
    (StreamState.SYN_SENT, StreamInput.ACK): StreamState.ESTABLISHED,
    (StreamState.SYN_SENT, StreamInput.REMOTE_FIN): StreamState.REMOTE_CLOSE,
    (StreamState.SYN_SENT, StreamInput.LOCAL_FIN): StreamState.LOCAL_CLOSE,
    (StreamState.SYN_SENT, StreamInput.RST): StreamState.RESET,
    (StreamState.ESTABLISHED, StreamInput.ACK): StreamState.ESTABLISHED,
    (StreamState.ESTABLISHED, StreamInput.REMOTE_FIN): StreamState.REMOTE_CLOSE,
    (StreamState.ESTABLISHED, StreamInput.LOCAL_FIN): StreamState.LOCAL_CLOSE,
    (StreamState.ESTABLISHED, StreamInput.RST): StreamState.RESET,
    (StreamState.LOCAL_CLOSE, StreamInput.ACK): StreamState.LOCAL_CLOSE,
    (StreamState.LOCAL_CLOSE, StreamInput.REMOTE_FIN): StreamState.CLOSED,
    (StreamState.LOCAL_CLOSE, StreamInput.RST): StreamState.RESET,
    (StreamState.REMOTE_CLOSE, StreamInput.ACK): StreamState.REMOTE_CLOSE,
    (StreamState.REMOTE_CLOSE, StreamInput.LOCAL_FIN): StreamState.CLOSED,
    (StreamState.REMOTE_CLOSE, StreamInput.RST): StreamState.RESET,
}

_GONE: Final = frozenset({StreamState.CLOSED, StreamState.RESET})
_REMOTE_CLOSED: Final = frozenset({StreamState.REMOTE_CLOSE, *_GONE})
_LOCAL_CLOSED: Final = frozenset({StreamState.LOCAL_CLOSE, *_GONE})


class YamuxStream:
    """One stream of a session.

    Attributes:
        id: Its number.
        state: Where it is in its life.
        send_credit: Bytes that the peer would still take.
    """

    __slots__ = ("_data_prefix", "_receive_window", "_unreturned", "id", "send_credit",
                 "state", "unacknowledged")  # fmt: skip

    def __init__(self, stream_id: int, state: StreamState) -> None:
        self.id = stream_id
        self.state = state
        self.send_credit = INITIAL_WINDOW
        self.unacknowledged = state is StreamState.SYN_SENT
        # The first 8 bytes of the header of all its data frames.
        self._data_prefix = encode_header(FrameType.DATA, 0, stream_id, 0)[:8]
        self._receive_window = INITIAL_WINDOW
        # Bytes consumed by the reader for which no credit was given yet.
        self._unreturned = 0

    @property
    def is_writable(self) -> bool:
        """Whether data may still be sent, if there is credit."""
        return self.state not in _LOCAL_CLOSED

    def data_header(self, size: int) -> bytes:
        """The header of a data frame of ``size`` bytes, paid from the credit.

        The frame has to be sent. ``size`` must be at most ``send_credit``, and
        the stream ``is_writable``: not checked, since this is the short way
        of updates to thousands of streams.
        """
        self.send_credit -= size
        return self._data_prefix + size.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer has opened a stream, and it was acknowledged."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class StreamAccepted:
    """The peer has acknowledged a stream of ours."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Data of a stream; :meth:`YamuxConnection.consume` gives credit for it."""

    stream: YamuxStream
    data: bytes


@dataclass(frozen=True, slots=True)
class CreditReceived:
    """The peer takes more data of a stream."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer sends no more data on a stream (FIN)."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class StreamReset:
    """A stream is dead both ways: by the peer, or by a timeout of ours."""

    stream: YamuxStream


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The answer to a ping."""

    value: int


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer takes no new streams; those there are go on."""


YamuxEvent = (
    StreamOpened
    | StreamAccepted
    | DataReceived
    | CreditReceived
    | StreamEnded
    | StreamReset
    | PongReceived
    | GoAwayReceived
)


class YamuxConnection:
    """One end of a yamux session.

    Args:
        role: Which end.
        max_streams: Streams of the peer's that may be open at one time; what
            is above is refused with a reset, as Go does when its backlog is
            full.

    Attributes:
        streams: All that are open, by id.
        unacknowledged: Streams of ours that the peer has not acknowledged.
        remote_go_away: The peer takes no new streams.
        refused: How many streams were refused.
        control: What ``data_to_send`` will give: empty, or frames. It is
            always the same list.
    """

    def __init__(self, role: Role, *, max_streams: int = MAX_STREAMS) -> None:
        self._role = role
        self._max_streams = max_streams
        self._next_id = 1 if role is Role.CLIENT else 2
        self._peer_parity = 0 if role is Role.CLIENT else 1
        self._peer_streams = 0
        self.streams: dict[int, YamuxStream] = {}
        self.unacknowledged = 0
        self.remote_go_away = False
        self.refused = 0
        self._fault: str | None = None
        self._buffer = b""
        self._offset = 0
        # The data frame whose body is being received.
        self._body_left = 0
        self._body_stream: YamuxStream | None = None  # None: to be discarded
        self._body_fin = False
        self._events: deque[YamuxEvent] = deque()
        self.control: list[bytes] = []
        # In the order of their deadlines, since the timeouts are fixed.
        self._opening: dict[int, float] = {}
        self._closing: dict[int, float] = {}

    # -- receiving ----------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the network; then call ``next_event`` until None."""
        if self._offset < len(self._buffer):
            data = self._buffer[self._offset :] + data
        self._buffer, self._offset = data, 0

    def next_event(self) -> YamuxEvent | None:
        """What happened next, or None if more bytes are needed for it.

        Raises:
            RemoteProtocolError: The peer broke the protocol, or says that we
                did. The session is over; ``data_to_send`` has the GoAway.
        """
        if self._fault is not None:
            raise RemoteProtocolError(self._fault)
        try:
            while True:
                if self._events:
                    return self._events.popleft()
                if self._body_left:
                    if self._offset == len(self._buffer):
                        return None
                    self._receive_body()
                elif len(self._buffer) - self._offset >= HEADER_LEN:
                    self._receive_header()
                else:
                    return None
        except RemoteProtocolError as exc:
            self._fault = str(exc)
            self.control.append(
                encode_header(FrameType.GO_AWAY, 0, 0, GoAwayCode.PROTOCOL_ERROR)
            )
            raise

    def _receive_header(self) -> None:
        kind, flags, stream_id, length = decode_header(self._buffer, self._offset)
        self._offset += HEADER_LEN
        if kind == FrameType.PING:
            self._handle_ping(flags, length)
        elif kind == FrameType.GO_AWAY:
            self._handle_go_away(length)
        else:
            if flags & SYN:
                self._handle_syn(stream_id)
            self._handle_stream_frame(kind, flags, stream_id, length)

    def _receive_body(self) -> None:
        end = min(self._offset + self._body_left, len(self._buffer))
        stream = self._body_stream
        # After a FIN (stream.go takes it all the same) nobody would read it.
        if stream is not None and stream.state not in _REMOTE_CLOSED:
            chunk = self._buffer[self._offset : end]
            self._events.append(DataReceived(stream, chunk))
        self._body_left -= end - self._offset
        self._offset = end
        if not self._body_left and self._body_fin and stream is not None:
            self._body_fin = False
            # It may have been reset between the first and last of its bytes.
            if stream.state not in _GONE:
                self._handle_fin(stream)

    def _handle_ping(self, flags: int, value: int) -> None:
        # session.go handlePing: what is no request is an answer.
        if flags & SYN:
            self.control.append(encode_header(FrameType.PING, ACK, 0, value))
        else:
            self._events.append(PongReceived(value))

    def _handle_go_away(self, code: int) -> None:
        if code == GoAwayCode.NORMAL:
            self.remote_go_away = True
            self._events.append(GoAwayReceived())
        elif code == GoAwayCode.PROTOCOL_ERROR:
            raise RemoteProtocolError("the peer goes away: yamux protocol error")
        elif code == GoAwayCode.INTERNAL_ERROR:
            raise RemoteProtocolError("the peer goes away: yamux internal error")
        else:
            raise RemoteProtocolError(f"the peer goes away for an unknown code {code}")

    def _handle_syn(self, stream_id: int) -> None:
        if stream_id & 1 != self._peer_parity or not stream_id:
            raise RemoteProtocolError(f"the peer may not open stream {stream_id}")
        if stream_id in self.streams:
            raise RemoteProtocolError(f"duplicate stream {stream_id} declared")
        if self._peer_streams >= self._max_streams:
            self.refused += 1
            self._send_update(RST, stream_id)
            return
        self._peer_streams += 1
        stream = YamuxStream(stream_id, StreamState.ESTABLISHED)
        self.streams[stream_id] = stream
        self._send_update(ACK, stream_id)
        self._events.append(StreamOpened(stream))

    def _handle_stream_frame(
        self, kind: int, flags: int, stream_id: int, length: int
    ) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            if flags & ACK:
                self._handle_ack(stream)
            if flags & RST:
                self._leave(stream, StreamInput.RST)
                self._events.append(StreamReset(stream))
                stream = None
        if kind == FrameType.WINDOW_UPDATE:
            if stream is None:
                return
            if length:
                stream.send_credit += length
                self._events.append(CreditReceived(stream))
            if flags & FIN:
                self._handle_fin(stream)
            return
        # Before waiting for the body. Nobody has ever been allowed more than
        # this, whatever stream it is for.
        window = INITIAL_WINDOW if stream is None else stream._receive_window
        if length > window:
            raise RemoteProtocolError(
                f"receive window exceeded (stream: {stream_id}, remain: {window}, "
                f"recv: {length})"
            )
        if stream is not None:
            stream._receive_window -= length
            if flags & FIN and not length:
                self._handle_fin(stream)
        self._body_left = length
        self._body_stream = stream
        self._body_fin = bool(flags & FIN and length)

    def _handle_ack(self, stream: YamuxStream) -> None:
        self._acknowledge(stream)
        if stream.state is StreamState.SYN_SENT:
            stream.state = StreamState.ESTABLISHED
            self._events.append(StreamAccepted(stream))

    def _acknowledge(self, stream: YamuxStream) -> None:
        if stream.unacknowledged:
            stream.unacknowledged = False
            self.unacknowledged -= 1
            self._opening.pop(stream.id, None)

    def _handle_fin(self, stream: YamuxStream) -> None:
        if (stream.state, StreamInput.REMOTE_FIN) not in TRANSITIONS:
            raise RemoteProtocolError(
                f"unexpected FIN flag on stream {stream.id} ({stream.state.value})"
            )
        self._move(stream, StreamInput.REMOTE_FIN)
        self._events.append(StreamEnded(stream))

    def _move(self, stream: YamuxStream, cause: StreamInput) -> None:
        stream.state = TRANSITIONS[stream.state, cause]
        if stream.state in _GONE:
            del self.streams[stream.id]
            self._acknowledge(stream)
            self._closing.pop(stream.id, None)
            if stream.id & 1 == self._peer_parity:
                self._peer_streams -= 1

    def _leave(self, stream: YamuxStream, cause: StreamInput) -> None:
        if self._body_stream is stream:
            self._body_stream, self._body_fin = None, False
        self._move(stream, cause)

    # -- sending ------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """Frames for the peer: acknowledgements, credit, pongs, resets."""
        if not self.control:
            return b""
        data = b"".join(self.control)
        self.control.clear()
        return data

    def _send_update(self, flags: int, stream_id: int, credit: int = 0) -> None:
        self.control.append(
            encode_header(FrameType.WINDOW_UPDATE, flags, stream_id, credit)
        )

    def open_stream(self, now: float) -> YamuxStream:
        """Open a stream; data may follow without waiting.

        Raises:
            LocalProtocolError: The peer takes none: it is going away, has
                MAX_UNACKNOWLEDGED to acknowledge, or all ids are used up.
        """
        if self.remote_go_away:
            raise LocalProtocolError("the peer takes no new streams")
        if self.unacknowledged >= MAX_UNACKNOWLEDGED:
            raise LocalProtocolError(
                f"{self.unacknowledged} streams wait for the peer already"
            )
        if self._next_id >= MAX_STREAM_ID:
            raise LocalProtocolError("all stream ids are used up")
        stream = YamuxStream(self._next_id, StreamState.SYN_SENT)
        self._next_id += 2
        self.streams[stream.id] = stream
        self.unacknowledged += 1
        self._opening[stream.id] = now + OPEN_TIMEOUT
        self._send_update(SYN, stream.id)
        return stream

    def consume(self, stream: YamuxStream, size: int) -> None:
        """Note that ``size`` received bytes of a stream are out of the way.

        When it is half of the window, the peer gets credit for more.
        """
        stream._unreturned += size
        if (
            stream._unreturned >= INITIAL_WINDOW // 2
            and stream.state not in _REMOTE_CLOSED
        ):
            self._send_update(0, stream.id, stream._unreturned)
            stream._receive_window += stream._unreturned
            stream._unreturned = 0

    def close_stream(self, stream: YamuxStream, now: float) -> None:
        """Send FIN: no more data from us. The peer has CLOSE_TIMEOUT for its own.

        Nothing happens if that was said before, or the stream is dead.
        """
        if stream.state in _LOCAL_CLOSED:
            return
        self._send_update(FIN, stream.id)
        self._move(stream, StreamInput.LOCAL_FIN)
        if stream.state is StreamState.LOCAL_CLOSE:
            self._closing.setdefault(stream.id, now + CLOSE_TIMEOUT)

    def expect_close(self, stream: YamuxStream, now: float) -> None:
        """Reset the stream if the peer does not close it in CLOSE_TIMEOUT."""
        if stream.state not in _REMOTE_CLOSED:
            self._closing.setdefault(stream.id, now + CLOSE_TIMEOUT)

    def reset_stream(self, stream: YamuxStream) -> None:
        """Send RST: the stream is dead both ways. Nothing if it was."""
        if stream.state not in _GONE:
            self._send_update(RST, stream.id)
            self._leave(stream, StreamInput.RST)

    def send_ping(self, value: int) -> None:
        """Ask the peer for a sign of life: a :class:`PongReceived`."""
        self.control.append(encode_header(FrameType.PING, SYN, 0, value))

    # -- time ---------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When ``handle_timeout`` wants to be called, if nothing happens."""
        deadlines = [
            next(iter(t.values())) for t in (self._opening, self._closing) if t
        ]
        return min(deadlines) if deadlines else None

    def handle_timeout(self, now: float) -> None:
        """Reset what the peer did not close in time; events say which.

        Raises:
            RemoteProtocolError: A stream was not acknowledged in time, which
                ends the session (session.go setOpenTimeout).
        """
        for stream_id, deadline in self._opening.items():
            if deadline <= now:
                raise RemoteProtocolError(
                    f"stream {stream_id} was not acknowledged in {OPEN_TIMEOUT:.0f} s"
                )
            break
        late = [i for i, deadline in self._closing.items() if deadline <= now]
        for stream_id in late:
            stream = self.streams[stream_id]
            self.reset_stream(stream)
            self._events.append(StreamReset(stream))
