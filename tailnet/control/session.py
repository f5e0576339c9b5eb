"""The tasks of one control session: a link, yamux on it, and its calls.

One task reads, and keeps the time while it waits. Writing needs none: what is
sent is tried at once, and only while the socket is full does a task write
what is left. So an idle session costs one task, and a message to a thousand
sessions wakes nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
import trio

from tailnet.control.keepalive import PING_INTERVAL, KeepAlive
from tailnet.control.link import (
    CLOSE_GOING_AWAY,
    CLOSE_INTERNAL_ERROR,
    CLOSE_NORMAL,
    MAX_CLOSE_REASON_LEN,
    Link,
)
from tailnet.control.yamux import (
    MAX_STREAMS,
    MAX_UNACKNOWLEDGED,
    CreditReceived,
    DataReceived,
    GoAwayReceived,
    PongReceived,
    Role,
    StreamAccepted,
    StreamEnded,
    StreamOpened,
    StreamReset,
    YamuxConnection,
    YamuxStream,
)
from tailnet.errors import NotConnectedError, RemoteProtocolError

if TYPE_CHECKING:
    from tailnet.control.calls import Call

__all__ = (
    "CLOSE_TIMEOUT",
    "MAX_FAILED_CALLS",
    "MAX_HELD_LEN",
    "MAX_UNREAD_CONTROL_LEN",
    "WRITE_TIMEOUT",
    "Session",
    "SessionEnd",
)

log = structlog.get_logger("tailnet.control")

# mux.go DefaultConfig: ConnectionWriteTimeout. Seconds without progress.
WRITE_TIMEOUT: Final = 10.0

# Seconds that closing the link may take, its goodbye included.
CLOSE_TIMEOUT: Final = 5.0

# Ours: bytes received for all calls of a session that no handler has taken.
# Four messages of the greatest length; a few kilobytes are usual.
MAX_HELD_LEN: Final = 16 << 20

# Ours: answers to the peer's frames (pongs, resets, credit) that it does not
# read. Else a flood of pings would fill the memory.
MAX_UNREAD_CONTROL_LEN: Final = 64 << 10

# Ours: calls of one session that break dRPC, each of which is logged.
MAX_FAILED_CALLS: Final = 16

# Above this many bytes, ``wait_writable`` waits.
_HIGH_WATER: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How a session ended.

    Attributes:
        reason: For people; empty if the peer just left.
        code: For the peer's websocket.
        is_fault: The peer did something wrong, or was silent. A connection
            that breaks is nobody's fault, and thousands may at once.
    """

    reason: str = ""
    code: int = CLOSE_NORMAL
    is_fault: bool = False

    @property
    def close_reason(self) -> str:
        """The reason, short enough for a websocket."""
        cut = self.reason.encode()[:MAX_CLOSE_REASON_LEN]
        return cut.decode("utf-8", "ignore")


class Session:
    """One end of a control session.

    Args:
        link: The connection; whoever runs the session closes it.
        role: Which end.
        nursery: For the task that writes when the socket is full.
        make_call: Makes the call of a stream that the peer has opened.
        ping_interval: Seconds between an answer and the next ping; the usual
            ones if None.
        max_streams: Streams of the peer's at one time.
        on_pong: Called for each answer, with the seconds that it took.

    Attributes:
        link: As given.
        handed: Bytes that the link has been given to send.
        calls: By stream id.
        end: How it ended; None while it lives.
        ended: Set at the end.
        keepalive: The pings; has the time of the last answer.
    """

    # A message to thousands of sessions costs as much for finding them in
    # memory as for all that is done: objects are few, and their fields in them.
    __slots__ = ("_control", "_failed_calls", "_held", "_make_call", "_nursery",
                 "_on_pong", "_stall_deadline", "_stall_sent", "_unread_control",
                 "_waiting", "_writing", "_yamux", "calls", "end", "ended", "handed",
                 "keepalive", "link", "room")  # fmt: skip

    def __init__(
        self,
        link: Link,
        role: Role,
        nursery: trio.Nursery,
        *,
        make_call: Callable[[Session, YamuxStream], Call] | None = None,
        ping_interval: float | None = None,
        max_streams: int = MAX_STREAMS,
        on_pong: Callable[[float], object] | None = None,
    ) -> None:
        self.link = link
        self.handed = 0
        self.calls: dict[int, Call] = {}
        self.end: SessionEnd | None = None
        self.ended = trio.Event()
        self.room = trio.lowlevel.ParkingLot()
        self._yamux = YamuxConnection(
            role, max_streams=0 if make_call is None else max_streams
        )
        self._control = self._yamux.control
        self._make_call = make_call
        self._on_pong = on_pong
        self.keepalive = KeepAlive(
            trio.current_time(),
            interval=PING_INTERVAL if ping_interval is None else ping_interval,
        )
        self._held = 0
        self._failed_calls = 0
        self._unread_control = 0
        self._nursery = nursery
        self._waiting: trio.CancelScope | None = None
        self._writing: trio.CancelScope | None = None
        # While the socket is full: when to look next whether it took anything,
        # and how much it had taken at the last look.
        self._stall_deadline = math.inf
        self._stall_sent = 0

    # -- life ---------------------------------------------------------------

    async def run(self) -> None:
        """Read until the session is over, however it ends; ``end`` says how.

        On return the calls have been told.
        """
        try:
            while self.end is None:
                await self._read_once()
        finally:
            self.finish(SessionEnd(code=CLOSE_GOING_AWAY))  # if cancelled
            # Without the reader there is nobody who would end them.
            for call in list(self.calls.values()):
                call.handle_reset()
            self.calls.clear()

    @property
    def refused_streams(self) -> int:
        """Streams of the peer's beyond the limit."""
        return self._yamux.refused

    def finish(self, end: SessionEnd) -> None:
        """End the session; ``run`` returns soon. The first call counts."""
        if self.end is None:
            self.end = end
            self.ended.set()
            self.room.unpark_all()
            for scope in (self._waiting, self._writing):
                if scope is not None:
                    scope.cancel()

    async def close(self) -> None:
        """Close the link of a session that is over, and say why."""
        assert self.end is not None
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            # Two tasks must not write at once.
            while self._writing is not None:
                await self.room.park()
            await self.link.aclose(self.end.code, self.end.close_reason)

    def _fail(self, reason: str) -> None:
        self.finish(SessionEnd(reason, CLOSE_INTERNAL_ERROR, is_fault=True))

    def _break(self, exc: Exception) -> None:
        reason = f"the connection broke: {exc.__cause__ or exc}"
        self.finish(SessionEnd(reason, CLOSE_INTERNAL_ERROR))

    async def _read_once(self) -> None:
        try:
            with trio.CancelScope(deadline=self._next_deadline()) as self._waiting:
                data = await self.link.receive()
                if data:
                    self._handle_data(data)
                else:
                    self.finish(SessionEnd())
            self._waiting = None
            if self.end is None:
                self._handle_timeouts()
        except RemoteProtocolError as exc:
            self._fail(str(exc))
        except trio.ClosedResourceError:
            self.finish(SessionEnd())  # its owner has closed the link
        except (OSError, trio.BrokenResourceError) as exc:
            self._break(exc)
        self.flush_control()

    # -- time ---------------------------------------------------------------

    def _next_deadline(self) -> float:
        deadline = min(self.keepalive.next_deadline(), self._stall_deadline)
        streams = self._yamux.next_deadline()
        return deadline if streams is None else min(deadline, streams)

    def _adjust_deadline(self) -> None:
        """There may be an earlier deadline than the reader knows."""
        if self._waiting is not None:
            self._waiting.deadline = min(self._waiting.deadline, self._next_deadline())

    def _handle_timeouts(self) -> None:
        now = trio.current_time()
        value = self.keepalive.handle_timeout(now)
        if value is not None:
            self._yamux.send_ping(value)
        self._yamux.handle_timeout(now)
        self._handle_events()
        if now >= self._stall_deadline:
            sent = self.handed - self.link.unsent
            if sent <= self._stall_sent:
                raise RemoteProtocolError("the peer does not read")
            self._watch_for_stall(sent)

    def _watch_for_stall(self, sent: int) -> None:
        self._stall_sent = sent
        self._stall_deadline = trio.current_time() + WRITE_TIMEOUT

    # -- receiving ----------------------------------------------------------

    def _handle_data(self, data: bytes) -> None:
        self._yamux.receive_data(data)
        self._handle_events()

    def _handle_events(self) -> None:
        yamux, calls = self._yamux, self.calls
        while self.end is None and (event := yamux.next_event()) is not None:
            match event:
                case DataReceived(stream, data):
                    # Of one frame there may be two events, and a call that did
                    # not survive the first.
                    if stream.id in calls:
                        calls[stream.id].handle_data(data)
                case CreditReceived(stream):
                    if stream.id in calls:
                        calls[stream.id].handle_credit()
                case StreamOpened(stream):
                    assert self._make_call is not None
                    calls[stream.id] = self._make_call(self, stream)
                case StreamEnded(stream):
                    if stream.id in calls:
                        calls[stream.id].handle_eof()
                case StreamReset(stream):
                    if stream.id in calls:
                        calls.pop(stream.id).handle_reset()
                case PongReceived(value):
                    taken = self.keepalive.handle_pong(value, trio.current_time())
                    if taken is not None and self._on_pong is not None:
                        self._on_pong(taken)
                case StreamAccepted() | GoAwayReceived():
                    self.room.unpark_all()

    def consume(self, stream: YamuxStream, size: int) -> None:
        """Give the peer credit for what is out of the way."""
        self._yamux.consume(stream, size)

    def hold(self, change: int) -> None:
        """Count bytes that calls keep until they are taken."""
        self._held += change
        if self._held > MAX_HELD_LEN and change > 0:
            self._fail(f"more than {MAX_HELD_LEN} bytes wait for calls to take them")

    # -- sending ------------------------------------------------------------

    def transmit(self, data: bytes) -> int:
        """Send frames, behind the control frames there are.

        Returns:
            Bytes that the link has kept, of these and earlier ones.
        """
        if self._control:
            self.flush_control()
        self.handed += len(data)
        link = self.link
        link.send_nowait(data)
        unsent = link.unsent
        if unsent and self._writing is None:
            self._start_writing()
        return unsent

    def flush_control(self) -> None:
        """Send what yamux has to say."""
        if not self._control:
            return
        if not self.link.unsent:
            self._unread_control = 0
        data = self._yamux.data_to_send()
        if self.transmit(data):
            self._unread_control += len(data)
        if self._unread_control > MAX_UNREAD_CONTROL_LEN:
            self._fail("the peer floods and does not read the answers")

    def _start_writing(self) -> None:
        if self.end is None:
            self._writing = trio.CancelScope()
            self._watch_for_stall(self.handed - self.link.unsent)
            self._adjust_deadline()
            self._nursery.start_soon(self._write, self._writing)

    async def _write(self, scope: trio.CancelScope) -> None:
        """Write what the socket did not take at once."""
        try:
            with scope:
                while self.link.unsent:
                    await self.link.flush()
                self._unread_control = 0
        except trio.ClosedResourceError:
            self.finish(SessionEnd())
        except (OSError, trio.BrokenResourceError) as exc:
            self._break(exc)
        finally:
            self._writing = None
            self._stall_deadline = math.inf
            self.room.unpark_all()

    async def wait_writable(self) -> None:
        """Wait until the socket has nearly all, or the session is over."""
        while self.link.unsent > _HIGH_WATER and self.end is None:
            await self.room.park()

    # -- streams ------------------------------------------------------------

    async def open_stream(self) -> YamuxStream:
        """Open a stream. The caller puts its call in ``calls`` at once.

        Waits while the peer has MAX_UNACKNOWLEDGED streams to acknowledge.

        Raises:
            NotConnectedError: The session is over, or the peer takes no calls.
        """
        await trio.lowlevel.checkpoint()
        while self.end is None and not self._yamux.remote_go_away:
            if self._yamux.unacknowledged < MAX_UNACKNOWLEDGED:
                return self._open_stream_now()
            await self.room.park()
        raise NotConnectedError(
            "the peer takes no more calls"
            if self.end is None
            else f"the session is over: {self.end.reason or 'the peer has left'}"
        )

    def _open_stream_now(self) -> YamuxStream:
        stream = self._yamux.open_stream(trio.current_time())
        self.flush_control()
        self._adjust_deadline()
        return stream

    def close_stream(self, stream: YamuxStream) -> None:
        """No more data from us; forget the stream if that is both ways."""
        self._yamux.close_stream(stream, trio.current_time())
        self._forget_if_gone(stream)
        self.flush_control()
        self._adjust_deadline()

    def expect_close(self, stream: YamuxStream) -> None:
        """Reset a stream that the peer does not close."""
        self._yamux.expect_close(stream, trio.current_time())
        self._adjust_deadline()

    def reset_stream(self, stream: YamuxStream) -> None:
        """End a stream both ways."""
        self._yamux.reset_stream(stream)
        self._forget_if_gone(stream)
        self.flush_control()

    def _forget_if_gone(self, stream: YamuxStream) -> None:
        if stream.id not in self._yamux.streams:
            self.calls.pop(stream.id, None)

    def fail_call(self, call: Call, exc: RemoteProtocolError) -> None:
        """The peer broke dRPC in one call: that ends it, and nothing else."""
        self._failed_calls += 1
        if self._failed_calls > MAX_FAILED_CALLS:
            self._fail(f"{self._failed_calls} calls broke the protocol: {exc}")
            return
        log.info("rpc call failed", reason=str(exc), **call.describe())
        self.reset_stream(call.stream)
        call.handle_reset()
