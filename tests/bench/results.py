"""Results as the load generator gives them, with everything in order."""

from __future__ import annotations

import copy
from typing import Any

from bench.figures import Side
from bench.record import Record, Run
from bench.scenarios import SCENARIOS, Kind, Scenario

TRAFFIC: dict[str, Any] = {
    "sent": 1000,
    "delivered": 1000,
    "lost": 0,
    "late": 0,
    "corrupt": 0,
    "reordered": 0,
    "unaccounted": 0,
    "never_arrived": 0,
    "closed_connections": 0,
    "packets_per_second": 500.0,
    "relay_cpu_us_per_packet": 4.0,
    "relay_cores": 0.99,
    "latency_us": {"p50": 100.0, "p99": 900.0},
}
IDLE: dict[str, Any] = {
    "opened": 2000,
    "failed_handshakes": 0,
    "alive_after_hold": 2000,
    "rss_bytes_per_connection": 20_000,
    "relay_before": {"rss_bytes": 50_000_000, "fds": 10},
    "relay_idle": {"rss_bytes": 90_000_000, "fds": 2010},
    "relay_after_close": {"rss_bytes": 52_000_000, "fds": 10},
}
RESULTS: dict[Kind, dict[str, Any]] = {
    Kind.BULK: TRAFFIC,
    Kind.FANOUT: TRAFFIC,
    Kind.SPARSE: TRAFFIC,
    Kind.IDLE: IDLE,
    Kind.HANDSHAKES: {
        "handshakes": 900,
        "failed_handshakes": 0,
        "handshakes_per_relay_cpu_second": 1000.0,
    },
    Kind.SLOW: {
        "delivered": 300,
        "corrupt": 0,
        "reordered": 0,
        "slow_stream_whole": True,
        "bystander": TRAFFIC,
    },
    Kind.CROWD: {
        "clients": 200,
        "server_cpu_us_per_connect": 900.0,
        "dial_us": {"p50": 1000.0, "p99": 4000.0},
        "server_cores_while_idle": 0.01,
        "rss_bytes_per_client": 60_000,
        "alone": {
            "delivered": 12_000,
            "server_cpu_us_per_delivery": 40.0,
            "all_have_it_us": {"p50": 9000.0, "p99": 20_000.0},
        },
        "windowed": {
            "delivered": 12_000,
            "updates_per_second": 100.0,
            "server_cpu_us_per_delivery": 38.0,
            "server_cores": 0.97,
        },
        "have_last_update": 200,
        "ready_for_handshake": 200,
        "repeated": 0,
    },
    Kind.TRANSFER: {
        "mb_per_second": 20.0,
        "relay_cpu_ms_per_mb": 25.0,
        "packets_dropped": 0.0,
    },
}


def scenario(name: str) -> Scenario:
    """Return the scenario of that name."""
    (found,) = [each for each in SCENARIOS if each.name == name]
    return found


def good_record(*names: str, repetitions: int = 3) -> Record:
    """Make a record in which nothing is wrong, of the named scenarios or all."""
    chosen = [each for each in SCENARIOS if not names or each.name in names]
    record = Record(
        quick=False,
        repetitions=repetitions,
        names=[each.name for each in chosen],
        sides=list(Side),
        machine={"kernel": "of a test"},
        seconds=12.0,
    )
    for repetition in range(1, repetitions + 1):
        for each in chosen:
            for side in each.sides:
                result = copy.deepcopy(RESULTS[each.kind])
                record.runs.append(Run(each.name, side, repetition, result))
    return record


def result_of(
    record: Record, name: str, side: Side = Side.OURS, repetition: int = 1
) -> dict[str, Any]:
    """Return the result of one run, to be changed."""
    for run in record.runs:
        if (run.scenario, run.side, run.repetition) == (name, side, repetition):
            assert run.result is not None
            return run.result
    raise AssertionError(f"no run of {name}")
