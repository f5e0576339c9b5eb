"""What waits to be written to one client.

Three lanes, written in this order: control frames, disco packets, data. The
packet lanes are bounded in packets and in bytes and drop their oldest; derper
has the same two, of 32 packets each. A dropped packet is dropped whole, before
it is sealed: what has been handed out by :meth:`Outbox.take` is committed.
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

from relay.derp.counters import Counters
from relay.derp.split import PREFIX_LEN, skip_packets
from relay.derp.switch import DropReason

__all__ = ("MAX_CONTROL_LEN", "Outbox")

# Control frames are never dropped, so their sum is bounded: a client that does
# not read, and for which this much waits, is not worth another frame. Room for
# PeerGone of 6,000 peers.
MAX_CONTROL_LEN: Final = 256 << 10

# derp_server.go: expMovingAverage with alpha 0.1.
_QUEUE_TIME_WEIGHT: Final = 0.1

# Encoded RecvPacket frames, how many, and when they came (seconds).
_Chunk: TypeAlias = tuple[bytes, int, float]


class _Lane:
    """Chunks of whole packets, oldest first."""

    __slots__ = ("chunks", "disco", "frame_bytes", "packets", "skipped")

    def __init__(self, *, disco: bool) -> None:
        self.chunks: deque[_Chunk] = deque()
        # Bytes at the front of the first chunk that were dropped. Cutting
        # them off at once would copy the rest of it for each packet.
        self.skipped = 0
        self.packets = 0
        self.frame_bytes = 0  # with headers and keys
        self.disco = disco

    def drop_oldest(
        self, packets: int, size: int, counters: Counters, reason: DropReason
    ) -> None:
        """Drop the oldest packets: the fewest that will do, or all.

        Args:
            packets: How many at least.
            size: How many bytes of frames at least.
            counters: Where to note them.
            reason: Why.
        """
        chunks = self.chunks
        dropped = 0
        freed = 0
        while chunks and (dropped < packets or freed < size):
            frames, count, since = chunks[0]
            start = self.skipped
            whole = len(frames) - start
            if dropped + count <= packets or freed + whole <= size:
                chunks.popleft()
                self.skipped = 0
                dropped += count
                freed += whole
                continue
            pos, skipped = skip_packets(frames, start, packets - dropped, size - freed)
            dropped += skipped
            freed += pos - start
            if skipped == count:
                chunks.popleft()
                self.skipped = 0
            else:
                if 2 * pos > len(frames):  # hold no more than twice what is left
                    frames = frames[pos:]
                    pos = 0
                chunks[0] = (frames, count - skipped, since)
                self.skipped = pos
        self.packets -= dropped
        self.frame_bytes -= freed
        counters.queued_bytes -= freed
        counters.drop(reason, dropped, freed - PREFIX_LEN * dropped, disco=self.disco)


class Outbox:
    """The queue of one connection.

    Args:
        counters: Of the switch; drops and queue times are noted there.
        max_bytes: Of frames, in each packet lane.
        max_packets: In each packet lane.
    """

    __slots__ = (
        "_control",
        "_control_len",
        "_counters",
        "_data",
        "_disco",
        "_max_bytes",
        "_max_packets",
        "bytes_sent",
        "packets_sent",
    )

    def __init__(self, counters: Counters, *, max_bytes: int, max_packets: int) -> None:
        self._counters = counters
        self._max_bytes = max_bytes
        self._max_packets = max_packets
        self._control: list[bytes] | None = None
        self._control_len = 0
        # Most connections idle most of the time: a lane is made when a
        # packet comes, and forgotten when it is empty.
        self._disco: _Lane | None = None
        self._data: _Lane | None = None
        self.packets_sent = 0
        self.bytes_sent = 0

    @property
    def queued_bytes(self) -> int:
        """Bytes of packet frames that wait."""
        return sum(lane.frame_bytes for lane in (self._disco, self._data) if lane)

    @property
    def has_packets(self) -> bool:
        return self._data is not None or self._disco is not None

    def put_control(self, frames: bytes) -> bool:
        """Queue whole control frames; False if too many wait already."""
        if self._control_len + len(frames) > MAX_CONTROL_LEN:
            return False
        if self._control is None:
            self._control = []
        self._control.append(frames)
        self._control_len += len(frames)
        return True

    def put_packets(
        self, frames: bytes, count: int, now: float, *, disco: bool
    ) -> None:
        """Queue RecvPacket frames; the oldest go if the lane is full.

        Args:
            frames: ``count`` encoded frames.
            count: At least one.
            now: Seconds.
            disco: Which lane.
        """
        if disco:
            lane = self._disco
            if lane is None:
                lane = self._disco = _Lane(disco=True)
        else:
            lane = self._data
            if lane is None:
                lane = self._data = _Lane(disco=False)
        size = len(frames)
        lane.chunks.append((frames, count, now))
        lane.packets += count
        lane.frame_bytes += size
        self._counters.queued_bytes += size
        if lane.packets > self._max_packets or lane.frame_bytes > self._max_bytes:
            lane.drop_oldest(
                lane.packets - self._max_packets,
                lane.frame_bytes - self._max_bytes,
                self._counters,
                DropReason.QUEUE_HEAD,
            )

    def drop_oldest_bytes(self, amount: int) -> None:
        """Drop packets until ``amount`` bytes are freed; disco goes last."""
        target = self.queued_bytes - amount
        for lane in (self._data, self._disco):
            if lane is not None:
                lane.drop_oldest(
                    0, self.queued_bytes - target, self._counters, DropReason.QUEUE_HEAD
                )

    def take(self, budget: int, now: float) -> bytes:
        """Hand out what is to be written next; it counts as sent.

        Args:
            budget: Bytes after which no further chunk is added.
            now: Seconds.

        Returns:
            Whole frames; empty if nothing waits.
        """
        parts: list[bytes] = []
        taken = 0
        if self._control is not None:
            parts = self._control
            taken = self._control_len
            self._control = None
            self._control_len = 0
        if self._disco is not None:
            taken = self._take_lane(self._disco, parts, taken, budget, now)
            if not self._disco.packets:
                self._disco = None
        if self._data is not None and taken < budget:
            self._take_lane(self._data, parts, taken, budget, now)
            if not self._data.packets:
                self._data = None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take_lane(
        self, lane: _Lane, parts: list[bytes], taken: int, budget: int, now: float
    ) -> int:
        counters = self._counters
        chunks = lane.chunks
        packets = 0
        size = 0
        average = counters.average_queue_seconds
        while chunks and taken < budget:
            frames, count, since = chunks.popleft()
            if lane.skipped:
                frames = frames[lane.skipped :]
                lane.skipped = 0
            parts.append(frames)
            taken += len(frames)
            size += len(frames)
            packets += count
            average += _QUEUE_TIME_WEIGHT * (now - since - average)
        counters.average_queue_seconds = average
        counters.queued_bytes -= size
        lane.packets -= packets
        lane.frame_bytes -= size
        payload = size - PREFIX_LEN * packets
        counters.packets_sent += packets
        counters.bytes_sent += payload
        self.packets_sent += packets
        self.bytes_sent += payload
        return taken

    def drop_all(self, reason: DropReason) -> None:
        """Drop every packet, because the client is gone."""
        self._control = None
        self._control_len = 0
        for lane in (self._disco, self._data):
            if lane is not None:
                lane.drop_oldest(lane.packets, 0, self._counters, reason)
        self._disco = self._data = None
