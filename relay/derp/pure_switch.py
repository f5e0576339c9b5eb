"""The switch in pure Python: one task, one epoll set, no task per connection.

Waking a trio task costs as much as carrying a dozen packets, so connections
have none. Their sockets are in an epoll set of the switch's own, whose file
descriptor one task waits for; when it is readable, that task does a *turn*:
for each socket that is ready, read a batch, route it; then flush every
connection that got something; then let trio run the others. See
``docs/design/pure-switch.md`` for the measurements and what else was tried.
"""

from __future__ import annotations

import heapq
import math
import random
import socket
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Final, Literal, NamedTuple

import structlog
import trio

from relay.derp.clients import Client
from relay.derp.counters import Counters
from relay.derp.poller import READABLE, WRITABLE, Poller, open_poller
from relay.derp.pure_connection import Connection
from relay.derp.switch import (
    ConnectionClosed,
    ConnectionStatistics,
    ConnId,
    DropReason,
    Hello,
    KeyGone,
    Limits,
    SwitchEvent,
    SwitchStatistics,
)
from relay.front.tls import TlsConnection
from tailnet.derp.frames import KEEP_ALIVE, PeerGoneReason, encode_peer_gone
from tailnet.derp.websocket import WebsocketStream
from tailnet.errors import RemoteProtocolError
from tailnet.keys import NodePublic

__all__ = ("PureSwitch",)

# Read from one socket before the next has its turn.
READ_LEN: Final = 256 << 10

# Sockets served before what they sent is flushed. With READ_LEN this bounds
# what a turn takes in, and so how long a flood delays everyone else.
SOCKETS_PER_TURN: Final = 32

# Bytes read in a turn after which what they brought is flushed at once. So the
# bursts of several senders do not meet in a queue that has room for one.
FLUSH_AFTER: Final = READ_LEN

# Seconds after which a turn ends early, and trio's other tasks run. What was
# ready goes on in the next one. Bytes are no measure: the same 256 KiB cost a
# millisecond as packets, and hundreds as empty websocket frames.
TURN_TIME: Final = 0.005

# Clients that got something in a round, from which on another round is read
# before they are written to; and how often.
MANY_DIRTY: Final = 16
ROUNDS_PER_TURN: Final = 4

_KEEP_ALIVE: Final = "keep alive"
_WRITE_DEADLINE: Final = "write deadline"

log = structlog.get_logger("relay.derp")


class _Timer(NamedTuple):
    deadline: float  # seconds
    conn_id: ConnId  # not the connection: a timer would keep it in memory
    kind: Literal["keep alive", "write deadline"]


class PureSwitch:
    """:class:`~relay.derp.switch.Switch` in pure Python on trio.

    Args:
        limits: Bounds of connections that are adopted without their own.
        queue_total: Bytes of packets that all queues may hold together;
            beyond it the fullest queue drops its oldest.
        jitter: Returns a random number in [0, 1), for KeepAlive.
        poller: Watches the sockets; None for the quickest there is.
        turn_time: Seconds after which a turn ends early.
    """

    name = "python"

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        queue_total: int = 1 << 30,
        jitter: Callable[[], float] = random.random,
        poller: Poller | None = None,
        turn_time: float = TURN_TIME,
    ) -> None:
        self._limits = limits or Limits()
        self._queue_total = queue_total
        self._jitter = jitter
        self._turn_time = turn_time
        self.counters = Counters()
        # Of the current turn. One look at the clock serves a whole batch.
        self.now = 0.0
        self.clients: dict[bytes, Client[Connection]] = {}
        # Where packets for a key go; what clients[key].active says.
        self.active: dict[bytes, Connection] = {}
        self.dirty: list[Connection] = []
        # Those whose socket is full. Between turns, nobody else has a queue.
        self._full: set[Connection] = set()
        self._by_id: dict[ConnId, Connection] = {}
        self._by_fd: dict[int, Connection] = {}
        self._next_id = 1
        self._poller = poller or open_poller()
        self._buffer = memoryview(bytearray(READ_LEN))
        self._timers: list[_Timer] = []
        self._earlier_timer = trio.Event()
        self._events: list[SwitchEvent] = []
        self._event = trio.Event()
        self._flushed: trio.Event | None = None
        self._is_telling = False  # in _tell_gone
        # Sockets that were ready when their turn ended early.
        self._ready: list[tuple[int, int]] = []
        self._is_ending = False

    # -- for the rooms above ------------------------------------------------

    def adopt(
        self,
        sock: socket.socket,
        hello: Hello,
        *,
        leftover: bytes = b"",
        tls: TlsConnection | None = None,
        websocket: WebsocketStream | None = None,
        limits: Limits | None = None,
    ) -> ConnId:
        self.now = now = trio.current_time()
        conn_id = ConnId(self._next_id)
        self._next_id += 1
        fd = sock.fileno()
        try:
            self._poller.register(fd, READABLE)
        except (OSError, ValueError) as exc:
            # The system is out of watches; or run() has ended, and this
            # client was in the middle of its handshake.
            sock.close()
            if isinstance(exc, OSError):
                raise
            return conn_id
        key = bytes(hello.key)
        client = self.clients.get(key)
        if client is None:
            client = self.clients[key] = Client(key)
        else:
            self.counters.total_dup_client_conns += 1
        connection = Connection(
            self,
            conn_id,
            sock,
            hello,
            client,
            tls=tls,
            websocket=websocket,
            limits=limits or self._limits,
            now=now,
        )
        self.counters.accepts += 1
        client.add(connection)
        self.active[key] = connection
        self._by_id[conn_id] = connection
        self._by_fd[fd] = connection
        self._set_keep_alive(connection)
        connection.outbox.put_control(hello.frames)
        self.mark_dirty(connection)
        if leftover:
            try:
                connection.receive_derp(leftover)
            except RemoteProtocolError as exc:
                self._flush_dirty()  # the hello, which the client may expect
                self.drop_connection(connection, str(exc), by_fault=True)
            except Exception:
                self._drop_for_bug(connection)
        self._flush_dirty()
        return conn_id

    def send(self, conn: ConnId, frames: bytes) -> bool:
        connection = self._by_id.get(conn)
        if connection is None:
            return False
        self.now = trio.current_time()
        queued = self.send_control(connection, frames)
        self._flush_dirty()
        return queued

    def close(self, conn: ConnId, reason: str) -> None:
        connection = self._by_id.get(conn)
        if connection is not None:
            self.now = trio.current_time()
            self.drop_connection(connection, reason)
            self._flush_dirty()

    def connections(self, key: NodePublic) -> list[ConnId]:
        client = self.clients.get(bytes(key))
        return [] if client is None else [c.id for c in client.connections]

    def connection_statistics(self, conn: ConnId) -> ConnectionStatistics | None:
        connection = self._by_id.get(conn)
        return None if connection is None else connection.statistics()

    def statistics(self) -> SwitchStatistics:
        statistics = self.counters.snapshot()
        connections = self._by_id.values()
        statistics.current_connections = len(connections)
        statistics.current_home_connections = sum(c.home for c in connections)
        statistics.current_not_ideal_connections = sum(
            c.hello.not_ideal for c in connections
        )
        statistics.connections_by_tls = dict(
            Counter(c.tls.version or "" for c in connections if c.tls is not None)
        )
        statistics.clients = len(self.clients)
        for client in self.clients.values():
            if client.is_duplicate:
                statistics.dup_client_keys += 1
                statistics.dup_client_conns += len(client.connections)
        return statistics

    async def wait_events(self) -> list[SwitchEvent]:
        while not self._events:
            await self._event.wait()
        events, self._events = self._events, []
        self._event = trio.Event()
        await trio.lowlevel.checkpoint_if_cancelled()
        return events

    async def wait_flushed(self) -> None:
        while self._full:
            if self._flushed is None:
                self._flushed = trio.Event()
            await self._flushed.wait()
        await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_timers)
                while True:
                    await trio.lowlevel.wait_readable(self._poller.fileno())
                    self._turn()
        finally:
            self.now = trio.current_time()
            self._is_ending = True
            for connection in list(self._by_id.values()):
                self.drop_connection(connection, "the relay is shutting down")
            self.dirty.clear()
            self._poller.close()

    # -- for connections ----------------------------------------------------

    def mark_dirty(self, connection: Connection) -> None:
        """Have ``connection`` flushed at the end of this turn."""
        if not connection.dirty:
            connection.dirty = True
            self.dirty.append(connection)

    def send_control(self, connection: Connection, frames: bytes) -> bool:
        """Queue control frames, to be flushed at the end of this turn."""
        if connection.closed or not connection.outbox.put_control(frames):
            return False
        self.mark_dirty(connection)
        return True

    def note_activity(self, connection: Connection) -> None:
        """One of several connections of a key has sent something."""
        connection.client.note_activity(connection)
        self.active[connection.key] = connection

    def drop_connection(
        self, connection: Connection, reason: str, *, by_fault: bool = False
    ) -> None:
        """Take a connection out, and tell whom it concerns."""
        if connection.closed:
            return
        connection.closed = True
        self._note_room(connection)
        sock = connection.sock
        del self._by_id[connection.id]
        del self._by_fd[sock.fileno()]
        self._poller.unregister(sock.fileno())
        connection.last_words()
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client was quicker
        sock.close()
        connection.outbox.drop_all(DropReason.GONE_DISCONNECTED)
        self._events.append(
            ConnectionClosed(
                connection.id,
                connection.hello.key,
                reason,
                by_fault,
                connection.statistics(),
                len(self._by_id),
            )
        )
        self._event.set()
        client = connection.client
        client.remove(connection)
        for heard in connection.heard or ():
            heard.heard_by.discard(connection)
        connection.heard = None
        if client.active is not None:
            self.active[client.key] = client.active
        else:
            self.active.pop(client.key, None)
        if not client.connections:
            del self.clients[client.key]
            self._tell_gone(client)

    def _tell_gone(self, client: Client[Connection]) -> None:
        """derpserver.go notePeerGoneFromRegionLocked."""
        self._events.append(KeyGone(NodePublic(client.key)))
        if self._is_ending:
            return  # those who would hear of it go next
        frame = encode_peer_gone(NodePublic(client.key), PeerGoneReason.DISCONNECTED)
        # What the peer sent last goes out before the word that it is gone, or
        # Go's client would take it for a sign of life. Not when a flush ends
        # the next connection, and so on: a crowd that leaves is no recursion.
        # Nor for other words: a thousand peers of one who leave in a turn are
        # one write for it.
        outermost, self._is_telling = not self._is_telling, True
        for connection in list(client.heard_by):
            if outermost and connection.dirty and connection.outbox.has_packets:
                self._flush(connection)
            if connection.heard is not None:
                connection.heard.discard(client)
            if self.send_control(connection, frame):
                self.counters.peer_gone_disconnected_frames += 1
        if outermost:
            self._is_telling = False

    # -- the turn -----------------------------------------------------------

    def _turn(self) -> None:
        self.now = trio.current_time()
        end = perf_counter() + self._turn_time
        for _ in range(ROUNDS_PER_TURN):
            ready = self._ready or self._poller.poll(0, SOCKETS_PER_TURN)
            taken = self._read_round(ready, end)
            # Packets for many clients: each of them costs a write. Meanwhile
            # more may have come, which then goes out with the same writes.
            if (
                not taken
                or taken >= FLUSH_AFTER
                or len(self.dirty) < MANY_DIRTY
                or self._ready
            ):
                break
        self._flush_dirty()

    def _read_round(self, ready: list[tuple[int, int]], end: float) -> int:
        """Read from sockets that are ready, each once.

        Args:
            ready: File descriptors and masks.
            end: When the turn is over; what is left goes on in the next one.

        Returns:
            How many bytes were taken since the last flush.
        """
        self._ready = []
        taken = 0
        for number, (fd, mask) in enumerate(ready, start=1):
            connection = self._by_fd.get(fd)
            if connection is None:
                continue  # an earlier one of this turn has ended it
            if mask & ~WRITABLE:
                try:
                    taken += connection.handle_readable(self._buffer)
                except Exception:
                    self._drop_for_bug(connection)
                if taken >= FLUSH_AFTER:
                    taken = 0
                    self._flush_dirty()
            if mask & WRITABLE:
                self.mark_dirty(connection)
            if perf_counter() > end and number < len(ready):
                self._ready = ready[number:]
                break
        return taken

    def _flush_dirty(self) -> None:
        dirty = self.dirty
        while dirty:
            connection = dirty.pop()
            connection.dirty = False
            if not connection.closed:
                self._flush(connection)
        if self.counters.queued_bytes > self._queue_total:
            self._relieve()

    def _flush(self, connection: Connection) -> None:
        try:
            done = connection.flush()
        except OSError as exc:
            self.drop_connection(connection, f"write: {exc.strerror}")
            return
        except Exception:
            self._drop_for_bug(connection)
            return
        if done == connection.watched:
            # Watch for room exactly while something waits for it.
            self._poller.modify(
                connection.sock.fileno(),
                READABLE if done else READABLE | WRITABLE,
            )
            if done:
                self._note_room(connection)
            else:
                self._note_full(connection)

    def _note_full(self, connection: Connection) -> None:
        connection.watched = True
        self._full.add(connection)
        connection.progress_at = self.now
        timeout = connection.limits.write_timeout
        # One timer a connection: a slow reader fills its socket a thousand
        # times a second.
        if timeout > 0 and not connection.write_timer_runs:
            connection.write_timer_runs = True
            self._set_timer(self.now + timeout, connection, _WRITE_DEADLINE)

    def _note_room(self, connection: Connection) -> None:
        connection.watched = False
        self._full.discard(connection)
        if self._flushed is not None and not self._full:
            self._flushed.set()
            self._flushed = None

    def _drop_for_bug(self, connection: Connection) -> None:
        """An exception that should not be: let it end one connection only."""
        log.exception("a bug ends a connection", key=connection.hello.key.short)
        self.drop_connection(connection, "internal error")

    def _relieve(self) -> None:
        """Too much waits in all: the fullest queues drop their oldest."""
        full = sorted(self._full, key=lambda c: c.outbox.queued_bytes)
        while full and self.counters.queued_bytes > self._queue_total:
            fullest = full.pop()
            excess = self.counters.queued_bytes - self._queue_total
            fullest.outbox.drop_oldest_bytes(excess)

    # -- timers -------------------------------------------------------------

    def _set_keep_alive(self, connection: Connection) -> None:
        limits = connection.limits
        # derpserver.go sendLoop: one jitter for the life of the connection,
        # so that a restart does not make all clients tick together.
        interval = limits.keep_alive + limits.keep_alive_jitter * self._jitter()
        connection.keep_alive_interval = interval
        self._set_timer(self.now + interval, connection, _KEEP_ALIVE)

    def _set_timer(
        self,
        deadline: float,
        connection: Connection,
        kind: Literal["keep alive", "write deadline"],
    ) -> None:
        heapq.heappush(self._timers, _Timer(deadline, connection.id, kind))
        if self._timers[0].deadline == deadline:
            self._earlier_timer.set()

    async def _run_timers(self) -> None:
        timers = self._timers
        while True:
            self._earlier_timer = trio.Event()
            deadline = timers[0].deadline if timers else math.inf
            with trio.move_on_at(deadline):
                await self._earlier_timer.wait()
            self.now = now = trio.current_time()
            while timers and timers[0].deadline <= now:
                timer = heapq.heappop(timers)
                connection = self._by_id.get(timer.conn_id)
                if connection is not None:
                    self._fire(timer, connection)
            self._flush_dirty()

    def _fire(self, timer: _Timer, connection: Connection) -> None:
        if timer.kind == _KEEP_ALIVE:
            if self.send_control(connection, KEEP_ALIVE):
                self.counters.keep_alives_sent += 1
            interval = connection.keep_alive_interval
            deadline = timer.deadline + interval
            if deadline <= self.now:  # the process was stopped: no catching up
                deadline = self.now + interval
            self._set_timer(deadline, connection, _KEEP_ALIVE)
            return
        connection.write_timer_runs = False
        if connection.watched:
            deadline = connection.progress_at + connection.limits.write_timeout
            if deadline > self.now:
                connection.write_timer_runs = True
                self._set_timer(deadline, connection, _WRITE_DEADLINE)
                return
            self.counters.write_timeouts += 1
            self.drop_connection(connection, "the client does not read")
