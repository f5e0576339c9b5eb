"""The ``/debug/`` pages, for the operator.

Names and texts are those of tailscale ``tsweb/debug.go`` and
``cmd/derper/derper.go``. Go's profiler, its garbage collector and the mutex
page have no like here.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Final

from relay.derp.switch import SwitchStatistics
from relay.flags import format_duration

__all__ = ("LINKS", "IndexFacts", "check_consistency", "debug_index")

# Page and description, in the order of the index.
LINKS: Final = {
    "vars": "Metrics (JSON)",
    "varz": "Metrics (Prometheus)",
    "check": "Consistency check",
}


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """What the index tells.

    Attributes:
        uptime: Seconds.
        version: Of this program.
        machine: Its host name.
        hostname: What the TLS certificate is for.
        switch: Name of the switch in use.
    """

    uptime: int
    version: str
    machine: str
    hostname: str
    switch: str


def debug_index(facts: IndexFacts) -> bytes:
    """The page ``/debug/``."""
    items = {
        "Uptime": format_duration(facts.uptime),
        "Version": facts.version,
        "Machine": facts.machine,
        "TLS hostname": facts.hostname,
        "Mesh key": "false",  # there is no mesh yet
        "Switch": facts.switch,
    }
    lines = [
        f"<li><b>{name}:</b> {html.escape(value)}</li>" for name, value in items.items()
    ]
    lines += (
        f'<li><a href="/debug/{name}">/debug/{name}</a> ({html.escape(text)})</li>'
        for name, text in LINKS.items()
    )
    return (
        "<html><body><h1>tailnet-relay debug</h1><ul>" + "".join(lines) + "</ul>"
    ).encode()


def check_consistency(statistics: SwitchStatistics) -> list[str]:
    """Compare counters that must agree.

    derper compares connections with keys, and so finds fault whenever a key
    is connected twice. Here those are reckoned in.

    Returns:
        What is wrong, a line each.
    """
    problems = []
    expected = (
        statistics.clients - statistics.dup_client_keys + statistics.dup_client_conns
    )
    if statistics.current_connections != expected:
        problems.append(
            f"connections = {statistics.current_connections} != "
            f"{expected} of {statistics.clients} keys"
        )
    for name, part in (
        ("home", statistics.current_home_connections),
        ("not-ideal", statistics.current_not_ideal_connections),
    ):
        if not 0 <= part <= statistics.current_connections:
            problems.append(
                f"{name} connections = {part}, of {statistics.current_connections}"
            )
    if statistics.queued_bytes < 0:
        problems.append(f"queued bytes = {statistics.queued_bytes}")
    return problems
