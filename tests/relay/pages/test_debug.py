from __future__ import annotations

import pytest

from relay.derp.switch import SwitchStatistics
from relay.pages.debug import IndexFacts, check_consistency, debug_index


def test_index() -> None:
    page = debug_index(
        IndexFacts(
            uptime=3723,
            version="1.2.3",
            machine="a<b",
            hostname="relay.example",
            switch="python",
        )
    ).decode()
    for text in (
        "<li><b>Uptime:</b> 1h2m3s</li>",
        "<li><b>Version:</b> 1.2.3</li>",
        "<li><b>Machine:</b> a&lt;b</li>",
        "<li><b>TLS hostname:</b> relay.example</li>",
        "<li><b>Mesh key:</b> false</li>",
        '<a href="/debug/varz">/debug/varz</a> (Metrics (Prometheus))',
    ):
        assert text in page


def test_counters_that_agree() -> None:
    # Three keys, one of them connected three times.
    statistics = SwitchStatistics(
        current_connections=5, clients=3, dup_client_keys=1, dup_client_conns=3
    )
    assert check_consistency(statistics) == []


@pytest.mark.parametrize(
    ("statistics", "problem"),
    [
        (SwitchStatistics(current_connections=2, clients=1), "connections = 2 != 1"),
        (SwitchStatistics(current_home_connections=1), "home connections = 1"),
        (SwitchStatistics(current_home_connections=-1), "home connections = -1"),
        (SwitchStatistics(current_not_ideal_connections=1), "not-ideal"),
        (SwitchStatistics(queued_bytes=-1), "queued bytes = -1"),
    ],
)
def test_counters_that_do_not(statistics: SwitchStatistics, problem: str) -> None:
    (line,) = check_consistency(statistics)
    assert line.startswith(problem)
