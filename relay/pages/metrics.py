"""What the relay counts, under the names that derper gave it.

``/debug/varz`` is Prometheus text, ``/debug/vars`` the JSON of Go's
``expvar``; both come from one list. Names and types are those of tailscale
``tsweb/varz`` and ``derpserver.go`` (``ExpVar``): a JSON name may start with
its type (``gauge_``, ``counter_``), which the Prometheus name loses. Counters
without derper's like are called ``relay_*``.

The text is written here and not by prometheus_client: that would put
``_total`` behind the name of every counter, and dashboards made for derper
would find none. What the process itself uses does come from that library.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import prometheus_client
import psutil

from relay.derp.session import SessionStatistics
from relay.derp.switch import DropReason, PacketKind, SwitchStatistics
from relay.front.listeners import AcceptLimiter
from relay.front.router import FrontStatistics
from relay.pages.bootstrap_dns import BootstrapDnsStatistics
from relay.stun import StunStatistics

__all__ = ("PROMETHEUS_TYPE", "Metrics")

PROMETHEUS_TYPE: Final = ("Content-Type", "text/plain; charset=utf-8")

_Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Metric:
    """One metric: a number, or one for each of several labels."""

    name: str  # of expvar, maybe with its type in front
    value: int | float | Mapping[_Labels, int]
    group: str = ""  # the object of expvar that it is in
    untyped: bool = False

    def to_prometheus(self) -> str:
        name = self.name.removeprefix("gauge_").removeprefix("counter_")
        if self.group:
            name = f"{self.group}_{name}"
        lines = []
        if not self.untyped:
            kind = "gauge" if self.name.startswith("gauge_") else "counter"
            lines.append(f"# TYPE {name} {kind}")
        if isinstance(self.value, Mapping):
            for labels, number in self.value.items():
                text = ",".join(f'{key}="{value}"' for key, value in labels)
                lines.append(f"{name}{{{text}}} {number}")
        else:
            lines.append(f"{name} {self.value}")
        return "\n".join((*lines, ""))

    def to_json(self) -> object:
        if isinstance(self.value, Mapping):
            return {
                ",".join(value for _, value in labels): number
                for labels, number in self.value.items()
            }
        return self.value


@dataclass(slots=True)
class Metrics:
    """Where the numbers come from.

    Attributes:
        switch: Takes a copy of the switch's counters.
        sessions: Of the handshakes.
        front: Of the main port.
        stun: Of the STUN responder.
        bootstrap_dns: Of that page.
        limiter: Of the TLS port; None if there is none.
        version: Of this program.
        now: Tells the time in seconds since 1970.
    """

    switch: Callable[[], SwitchStatistics]
    sessions: SessionStatistics
    front: FrontStatistics
    stun: StunStatistics
    bootstrap_dns: BootstrapDnsStatistics
    limiter: AcceptLimiter | None = None
    version: str = ""
    now: Callable[[], float] = time.time
    _process: psutil.Process = field(default_factory=psutil.Process)
    _started: float = field(init=False)
    _memory_at_start: int = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.now()
        self._memory_at_start = self._process.memory_info().rss

    @property
    def uptime(self) -> int:
        """Whole seconds since the start."""
        return int(self.now() - self._started)

    def to_prometheus(self) -> bytes:
        """The text of ``/debug/varz``."""
        own = "".join(metric.to_prometheus() for metric in self._collect())
        own += f'version{{version="{self.version}",binary="tailnet-relay"}} 1\n'
        return prometheus_client.generate_latest() + own.encode()

    def to_json(self) -> bytes:
        """The text of ``/debug/vars``."""
        top: dict[str, object] = {"cmdline": sys.orig_argv, "version": self.version}
        groups: dict[str, dict[str, object]] = {"derp": {"version": self.version}}
        for metric in self._collect():
            where = groups.setdefault(metric.group, {}) if metric.group else top
            where[metric.name] = metric.to_json()
        return json.dumps(top | groups, indent="\t", sort_keys=True).encode()

    def _collect(self) -> list[_Metric]:
        switch = self.switch()
        metrics = [
            *self._derp(switch),
            *self._stun(),
            *self._bootstrap_dns(),
            _Metric("derp_packets_dropped", _by_reason(switch.packets_dropped)),
            _Metric("derp_bytes_dropped", _by_reason(switch.bytes_dropped)),
            _Metric("derp_websocket_accepts", self.sessions.websockets),
            _Metric("counter_uptime_sec", self.uptime),
            _Metric("process_start_unix_time", int(self._started), untyped=True),
            _Metric("node_boot_time_seconds", int(psutil.boot_time()), untyped=True),
            _Metric("relay_fast_starts", self.sessions.fast_starts),
            _Metric("relay_handshakes_failed", self.sessions.failed),
            _Metric("relay_clients_refused", self.sessions.refused),
            _Metric("relay_keep_alives_sent", switch.keep_alives_sent),
            _Metric("gauge_relay_queued_bytes", switch.queued_bytes),
        ]
        if self.limiter is not None:
            metrics += self._tls(self.limiter, switch.connections_by_tls)
        return metrics

    def _derp(self, switch: SwitchStatistics) -> list[_Metric]:
        numbers = {
            # derper counts before the handshake, the switch after it.
            "accepts": self.sessions.started,
            "bytes_received": switch.bytes_received,
            "bytes_sent": switch.bytes_sent,
            "counter_total_dup_client_conns": switch.total_dup_client_conns,
            "gauge_clients_local": switch.clients,
            "gauge_clients_total": switch.clients,
            "gauge_current_connections": switch.current_connections,
            "gauge_current_dup_client_conns": switch.dup_client_conns,
            "gauge_current_dup_client_keys": switch.dup_client_keys,
            "gauge_current_file_descriptors": self._process.num_fds(),
            "gauge_current_home_connections": switch.current_home_connections,
            "gauge_current_notideal_connections": switch.current_not_ideal_connections,
            "gauge_memstats_sys0": self._memory_at_start,
            "got_ping": switch.got_ping,
            "home_moves_in": switch.home_moves_in,
            "home_moves_out": switch.home_moves_out,
            "packets_received": switch.packets_received,
            "packets_sent": switch.packets_sent,
            "peer_gone_disconnected_frames": switch.peer_gone_disconnected_frames,
            "peer_gone_not_here_frames": switch.peer_gone_not_here_frames,
            "sclient_write_timeouts": switch.write_timeouts,
            "sent_pong": switch.sent_pong,
            "unknown_frames": switch.unknown_frames,
        }
        return [
            *(_Metric(name, value, "derp") for name, value in numbers.items()),
            _Metric(
                "average_queue_duration_ms",
                switch.average_queue_duration_ms,
                "derp",
                untyped=True,
            ),
            _Metric(
                "counter_packets_received_kind",
                {(("kind", k.value),): switch.received_by_kind[k] for k in PacketKind},
                "derp",
            ),
        ]

    def _stun(self) -> list[_Metric]:
        stun = self.stun
        requests = {
            "not_stun": stun.not_stun,
            "read_error": stun.read_error,
            "success": stun.success,
            "write_error": stun.write_error,
        }
        families = {"ipv4": stun.ipv4, "ipv6": stun.ipv6}
        return [
            _Metric("counter_requests", _labelled("disposition", requests), "stun"),
            _Metric("counter_addrfamily", _labelled("family", families), "stun"),
        ]

    def _bootstrap_dns(self) -> list[_Metric]:
        dns = self.bootstrap_dns
        numbers = {
            "requests": dns.requests,
            "published_hits": dns.published_hits,
            "published_misses": dns.published_misses,
            "unpublished_misses": dns.unpublished_misses,
            "queried_domains": len(dns.queried),
        }
        return [
            _Metric(f"counter_bootstrap_dns_{name}", value)
            for name, value in numbers.items()
        ]

    def _tls(
        self, limiter: AcceptLimiter, connections_by_tls: Mapping[str, int]
    ) -> list[_Metric]:
        return [
            _Metric("counter_accepted_connections", limiter.accepted, "tls_listener"),
            _Metric("counter_rejected_connections", limiter.rejected, "tls_listener"),
            _Metric(
                "derper_tls_request_version",
                _by_tls_version(self.front.requests_by_tls),
                untyped=True,
            ),
            _Metric(
                "gauge_derper_tls_active_version", _by_tls_version(connections_by_tls)
            ),
            _Metric("relay_tls_failures", self.front.tls_failures),
        ]


def _by_tls_version(numbers: Mapping[str, int]) -> dict[_Labels, int]:
    return _labelled(
        "version", {name.removeprefix("TLSv"): n for name, n in numbers.items()}
    )


def _labelled(label: str, numbers: Mapping[str, int]) -> dict[_Labels, int]:
    return {((label, value),): number for value, number in numbers.items()}


def _by_reason(
    counts: Mapping[tuple[DropReason, PacketKind], int],
) -> dict[_Labels, int]:
    return {
        (("reason", reason.value), ("kind", kind.value)): counts[reason, kind]
        for reason in sorted(DropReason)
        for kind in PacketKind
    }
