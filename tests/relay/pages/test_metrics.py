from __future__ import annotations

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.derp.session import SessionStatistics
from relay.derp.switch import DropReason, PacketKind, SwitchStatistics
from relay.front.listeners import AcceptLimiter
from relay.front.router import FrontStatistics
from relay.pages.bootstrap_dns import BootstrapDnsStatistics
from relay.pages.metrics import Metrics
from relay.stun import StunStatistics

# What derper v1.102.0 serves at /debug/varz and this relay does too, with the
# type given there ("" for none).
DERPER = {
    "bootstrap_dns_published_hits": "counter",
    "bootstrap_dns_published_misses": "counter",
    "bootstrap_dns_queried_domains": "counter",
    "bootstrap_dns_requests": "counter",
    "bootstrap_dns_unpublished_misses": "counter",
    "derp_accepts": "counter",
    "derp_average_queue_duration_ms": "",
    "derp_bytes_dropped": "counter",
    "derp_bytes_received": "counter",
    "derp_bytes_sent": "counter",
    "derp_clients_local": "gauge",
    "derp_clients_total": "gauge",
    "derp_current_connections": "gauge",
    "derp_current_dup_client_conns": "gauge",
    "derp_current_dup_client_keys": "gauge",
    "derp_current_file_descriptors": "gauge",
    "derp_current_home_connections": "gauge",
    "derp_current_notideal_connections": "gauge",
    "derp_got_ping": "counter",
    "derp_home_moves_in": "counter",
    "derp_home_moves_out": "counter",
    "derp_memstats_sys0": "gauge",
    "derp_packets_dropped": "counter",
    "derp_packets_received": "counter",
    "derp_packets_received_kind": "counter",
    "derp_packets_sent": "counter",
    "derp_peer_gone_disconnected_frames": "counter",
    "derp_peer_gone_not_here_frames": "counter",
    "derp_sclient_write_timeouts": "counter",
    "derp_sent_pong": "counter",
    "derp_total_dup_client_conns": "counter",
    "derp_unknown_frames": "counter",
    "derp_websocket_accepts": "counter",
    "derper_tls_request_version": "",
    "node_boot_time_seconds": "",
    "process_start_unix_time": "",
    "stun_addrfamily": "counter",
    "stun_requests": "counter",
    "tls_listener_accepted_connections": "counter",
    "tls_listener_rejected_connections": "counter",
    "uptime_sec": "counter",
    "version": "",
}


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def make(
    switch: SwitchStatistics | None = None,
    *,
    tls: bool = True,
    clock: Clock | None = None,
) -> Metrics:
    statistics = switch or SwitchStatistics()
    limiter = AcceptLimiter(float("inf"), 1, 0.0)
    limiter.accepted, limiter.rejected = 11, 12
    return Metrics(
        switch=lambda: statistics,
        sessions=SessionStatistics(started=7, websockets=2, fast_starts=3),
        front=FrontStatistics({"TLSv1.3": 5, "TLSv1.2": 6}, tls_failures=4),
        stun=StunStatistics(success=21, not_stun=22, ipv4=23, ipv6=24),
        bootstrap_dns=BootstrapDnsStatistics(requests=31, queried={"a", "b"}),
        limiter=limiter if tls else None,
        version="1.2.3",
        now=clock or Clock(),
    )


def samples(text: str) -> dict[str, float]:
    """Every sample, by its name with labels as written."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            assert name not in found
            found[name] = float(value)
    return found


def test_names_and_types_are_those_of_derper() -> None:
    text = make().to_prometheus().decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    names = {re.sub(r"\{.*", "", name) for name in samples(text)}
    for name, kind in DERPER.items():
        assert name in names
        assert types.get(name, "") == kind
    ours = {
        name
        for name in names - set(DERPER)
        if not name.startswith(("process_", "python_", "relay_"))
    }
    assert ours == set()


def test_prometheus_understands_it() -> None:
    text = make().to_prometheus().decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert "derp_packets_dropped" in families
    # From prometheus_client itself, by the names of Go's client.
    assert "process_resident_memory_bytes" in families


def test_numbers_arrive_under_their_names() -> None:
    switch = SwitchStatistics(
        current_connections=1,
        clients=2,
        packets_sent=3,
        average_queue_duration_ms=0.25,
        write_timeouts=4,
        queued_bytes=5,
    )
    switch.received_by_kind[PacketKind.DISCO] = 6
    switch.packets_dropped[DropReason.QUEUE_HEAD, PacketKind.OTHER] = 7
    switch.bytes_dropped[DropReason.GONE_DISCONNECTED, PacketKind.DISCO] = 8
    clock = Clock()
    metrics = make(switch, clock=clock)
    clock.now += 61.5
    found = samples(metrics.to_prometheus().decode())
    expected = {
        "derp_current_connections": 1,
        "derp_clients_total": 2,
        "derp_packets_sent": 3,
        "derp_average_queue_duration_ms": 0.25,
        "derp_sclient_write_timeouts": 4,
        "relay_queued_bytes": 5,
        'derp_packets_received_kind{kind="disco"}': 6,
        'derp_packets_dropped{reason="queue_head",kind="other"}': 7,
        'derp_bytes_dropped{reason="gone_disconnected",kind="disco"}': 8,
        "derp_accepts": 7,
        "derp_websocket_accepts": 2,
        "relay_fast_starts": 3,
        "relay_tls_failures": 4,
        'derper_tls_request_version{version="1.3"}': 5,
        "tls_listener_accepted_connections": 11,
        "tls_listener_rejected_connections": 12,
        'stun_requests{disposition="success"}': 21,
        'stun_requests{disposition="not_stun"}': 22,
        'stun_requests{disposition="read_error"}': 0,
        'stun_addrfamily{family="ipv4"}': 23,
        "bootstrap_dns_requests": 31,
        "bootstrap_dns_queried_domains": 2,
        "process_start_unix_time": 1_000_000,
        "uptime_sec": 61,
        'version{version="1.2.3",binary="tailnet-relay"}': 1,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["derp_current_file_descriptors"] > 2
    assert found["derp_memstats_sys0"] > 1 << 20


def test_all_drop_reasons_are_there_from_the_start() -> None:
    found = samples(make().to_prometheus().decode())
    drops = [name for name in found if name.startswith("derp_packets_dropped{")]
    assert len(drops) == len(DropReason) * len(PacketKind) == 14


def test_plain_port_has_no_tls_metrics() -> None:
    text = make(tls=False).to_prometheus().decode()
    assert "tls" not in text


@pytest.mark.parametrize("tls", [False, True])
def test_json_is_that_of_expvar(tls: bool) -> None:
    found = json.loads(make(tls=tls).to_json())
    assert found["derp"]["accepts"] == 7
    assert found["derp"]["gauge_current_connections"] == 0
    assert found["derp"]["counter_packets_received_kind"] == {"disco": 0, "other": 0}
    assert found["derp_websocket_accepts"] == 2
    assert found["stun"]["counter_requests"]["success"] == 21
    assert found["counter_bootstrap_dns_requests"] == 31
    assert ("tls_listener" in found) is tls
    assert found["version"] == found["derp"]["version"] == "1.2.3"
