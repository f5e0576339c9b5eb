"""The counters of the pure switch, as plain integers on one object."""

from __future__ import annotations

from typing import Final

from relay.derp.switch import DropReason, PacketKind, SwitchStatistics

__all__ = ("Counters",)

_KIND: Final = {True: PacketKind.DISCO, False: PacketKind.OTHER}


class Counters:
    """What the switch counts while it carries packets.

    :meth:`snapshot` turns it into the :class:`SwitchStatistics` that others
    see; the names are the same.
    """

    __slots__ = (
        "accepts",
        "average_queue_seconds",
        "bytes_received",
        "bytes_sent",
        "dropped",
        "got_ping",
        "home_moves_in",
        "home_moves_out",
        "keep_alives_sent",
        "packets_received",
        "packets_received_disco",
        "packets_sent",
        "peer_gone_disconnected_frames",
        "peer_gone_not_here_frames",
        "queued_bytes",
        "sent_pong",
        "total_dup_client_conns",
        "unknown_frames",
        "write_timeouts",
    )

    def __init__(self) -> None:
        self.accepts = 0
        self.average_queue_seconds = 0.0
        self.packets_received = 0
        self.packets_received_disco = 0
        self.bytes_received = 0
        self.packets_sent = 0
        self.bytes_sent = 0
        # (reason, is disco) -> [packets, bytes]
        self.dropped: dict[tuple[DropReason, bool], list[int]] = {}
        self.got_ping = 0
        self.sent_pong = 0
        self.home_moves_in = 0
        self.home_moves_out = 0
        self.keep_alives_sent = 0
        self.peer_gone_disconnected_frames = 0
        self.peer_gone_not_here_frames = 0
        self.queued_bytes = 0
        self.total_dup_client_conns = 0
        self.unknown_frames = 0
        self.write_timeouts = 0

    def drop(
        self, reason: DropReason, packets: int, payload: int, *, disco: bool
    ) -> None:
        """Note packets that were dropped, and their bytes without headers."""
        if packets:
            counts = self.dropped.setdefault((reason, disco), [0, 0])
            counts[0] += packets
            counts[1] += payload

    def snapshot(self) -> SwitchStatistics:
        """A copy for others; gauges of connections are left at zero."""
        statistics = SwitchStatistics(
            accepts=self.accepts,
            total_dup_client_conns=self.total_dup_client_conns,
            packets_received=self.packets_received,
            bytes_received=self.bytes_received,
            packets_sent=self.packets_sent,
            bytes_sent=self.bytes_sent,
            unknown_frames=self.unknown_frames,
            home_moves_in=self.home_moves_in,
            home_moves_out=self.home_moves_out,
            got_ping=self.got_ping,
            sent_pong=self.sent_pong,
            keep_alives_sent=self.keep_alives_sent,
            peer_gone_disconnected_frames=self.peer_gone_disconnected_frames,
            peer_gone_not_here_frames=self.peer_gone_not_here_frames,
            write_timeouts=self.write_timeouts,
            average_queue_duration_ms=self.average_queue_seconds * 1000,
            queued_bytes=self.queued_bytes,
        )
        statistics.received_by_kind[PacketKind.DISCO] = self.packets_received_disco
        statistics.received_by_kind[PacketKind.OTHER] = (
            self.packets_received - self.packets_received_disco
        )
        for (reason, disco), (packets, payload) in self.dropped.items():
            statistics.packets_dropped[reason, _KIND[disco]] = packets
            statistics.bytes_dropped[reason, _KIND[disco]] = payload
        return statistics
