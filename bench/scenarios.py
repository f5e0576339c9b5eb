"""The table of what is measured, with the targets.

A scenario is a subcommand of the load generator with its options, or a real
transfer. It runs once per side and repetition, each time with a relay of its
own.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from bench.figures import Better, Figure, Result, Side, Target, field

__all__ = (
    "FRAMING",
    "SCENARIOS",
    "TRANSFER_BYTES",
    "Kind",
    "Scenario",
    "Section",
    "select",
)

FRAMING: Final = "framing"  # goes by this name beside the scenarios
TRANSFER_BYTES: Final = 50_000_000


class Kind(enum.Enum):
    """Which of the load generator's subcommands, or real clients."""

    BULK = "bulk"
    FANOUT = "fanout"
    SPARSE = "sparse"
    IDLE = "idle"
    HANDSHAKES = "handshakes"
    SLOW = "slow"
    TRANSFER = "transfer"
    CROWD = "crowd"


class Section(enum.Enum):
    """A heading of the report: its title, the question and the method."""

    BULK_TLS = (
        "Bulk over TLS 1.3",
        "What does a packet cost when clients send all they can?",
        (
            "10 pairs of clients; at most 32 packets of a pair are out, which is"
            " what derper's queue holds. Either every packet is a write, a TLS"
            " record and a `send()` of its own, as real clients do, or 16 frames"
            " are one. Relay and load generator are pinned to a core each."
        ),
    )
    BULK_PLAIN = (
        "Bulk over plain TCP",
        "The same without TLS.",
        (
            "As over TLS. With 128 frames per write, at most 256 packets of a pair"
            " are out: more than derper's queue holds, so derper loses some there."
        ),
    )
    FANOUT = (
        "One sender, 100 receivers",
        "What does a packet cost when each goes to another client than the last?",
        (
            "1400-byte packets to each receiver in turn, at most 32 out for each."
            " Pinned as above."
        ),
    )
    WINDOW = (
        "A window as TCP in the tunnel opens it",
        (
            "How much arrives when the clients have far more in flight than"
            " derper's queue holds?"
        ),
        (
            "10 pairs, 1024 packets of 1400 bytes of each in flight, default queues"
            " of both relays. Pinned as above."
        ),
    )
    SPARSE = (
        "Sparse traffic",
        (
            "What does a packet cost, and how long does it take, when there is"
            " nothing to batch?"
        ),
        (
            "One pair, 1,000 packets of 64 bytes a second at equal distances, each"
            " alone. Nothing is pinned: waking the other core is part of it."
        ),
    )
    WEBSOCKET = (
        "DERP in a WebSocket",
        "What does the other way in cost?",
        "As bulk over TLS, with `Upgrade: websocket` and subprotocol `derp`.",
    )
    SLOW = (
        "Beside a flood",
        "How long does a pair wait whose neighbour cannot keep up?",
        (
            "8 senders flood one receiver that reads 2 MB/s in small pieces; beside"
            " it one pair sends one packet at a time. Nothing is pinned."
        ),
    )
    MEMORY = (
        "Idle clients",
        "What does a client cost that says nothing, and does it come back?",
        (
            "Resident memory of a fresh relay before, while all clients are"
            " connected, and 2 s after all have gone."
        ),
    )
    HANDSHAKES = (
        "Handshakes",
        "How many clients can come per second of the relay's CPU time?",
        (
            "4 clients at a time connect, log in and go, each with a full TLS"
            " handshake. Nothing is pinned."
        ),
    )
    TRANSFER = (
        "Real clients",
        "How fast do two unmodified clients move a file?",
        (
            f"tailcat sends {TRANSFER_BYTES // 1_000_000} MB to tailcat over TLS"
            " through the relay, with fast start, direct UDP off. The time is from"
            " the sender's start to the receiver's end; the bytes are compared."
            " Nothing is pinned. The clients take most of two cores, so this moves"
            " from run to run by more than its range: repeat it before believing it."
        ),
    )
    CROWD = (
        "Coordinator: an agent and its clients",
        (
            "What does it cost to tell all clients of an agent of its new node, how"
            " long until all have it, and what do connected clients cost?"
        ),
        (
            "`tailnet serve` beside Coder's own coordinator, over plain TCP. Clients"
            " connect as Coder's do (websocket, yamux, dRPC; Coordinate and"
            " StreamDERPMaps), the first 100 one by one, the others 16 at a time; each"
            " is connected when it has the agent's node, and the agent tells it that"
            " it is ready for the handshake. Then the agent publishes nodes of 310"
            " bytes: each when all have the one before, and, for the rate, with 8 on"
            " the way. A delivery is one node at one client. A run in which a client"
            " has not got the last one is a fault. Memory is resident memory after"
            " some seconds of silence, less that before the clients came. Pinned as"
            " above."
        ),
    )

    @property
    def rival(self) -> Side:
        """The real server that ours runs beside."""
        return Side.CODER if self is Section.CROWD else Side.DERPER

    @property
    def title(self) -> str:
        return self.value[0]

    @property
    def question(self) -> str:
        return self.value[1]

    @property
    def method(self) -> str:
        return self.value[2]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One line of what is measured.

    Attributes:
        name: For ``--only`` and the record.
        section: Where in the report.
        case: What is special about it.
        kind: What runs.
        figures: What comes of it.
        tls: TLS 1.3, else plain TCP.
        options: Of the load generator, in both forms.
        full: Further ones of the full form.
        quick: Further ones of the short form; None if it is not in that.
        pinned: Whether relay and load generator have a core each.
        may_lose: Whether more is in flight than our default queue holds, so
            that a loss is no fault.
    """

    name: str
    section: Section
    case: str
    kind: Kind
    figures: tuple[Figure, ...]
    tls: bool = True
    options: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = ()
    pinned: bool = False
    may_lose: bool = False

    @property
    def sides(self) -> tuple[Side, Side]:
        """Whose servers it runs against."""
        return (Side.OURS, self.section.rival)

    def loader_arguments(self, *, quick: bool) -> tuple[str, ...]:
        """Return subcommand and options of the load generator."""
        tls = ("--tls",) if self.tls else ()
        size = self.quick if quick else self.full
        return (self.kind.value, *tls, *self.options, *(size or ()))


CPU: Final = Figure("relay CPU", "us/packet", field("relay_cpu_us_per_packet"))
RATE: Final = Figure(
    "delivered", "packets/s", field("packets_per_second"), Better.HIGHER
)
P50: Final = Figure("latency p50", "us", field("latency_us.p50"))
P99: Final = Figure("latency p99", "us", field("latency_us.p99"))


def _lost(result: Result) -> float:
    lost, delivered = float(result["lost"]), float(result["delivered"])
    return 100 * lost / (lost + delivered)


def _left_descriptors(result: Result) -> float:
    return float(result["relay_after_close"]["fds"] - result["relay_before"]["fds"])


def _left_memory(result: Result) -> float:
    after, before = result["relay_after_close"], result["relay_before"]
    return (float(after["rss_bytes"]) - float(before["rss_bytes"])) / 1e6


LOST: Final = Figure("lost", "%", _lost)
MEMORY: Final = Figure(
    "memory per client", "kB", field("rss_bytes_per_connection", divisor=1e3)
)
MEMORY_ALL: Final = Figure(
    "memory of the relay, all connected",
    "MB",
    field("relay_idle.rss_bytes", divisor=1e6),
)
MEMORY_LEFT: Final = Figure("more memory than before, all gone", "MB", _left_memory)
DESCRIPTORS_LEFT: Final = Figure(
    "more descriptors than before, all gone",
    "",
    _left_descriptors,
    target=Target("ours", 0),
)
HANDSHAKES: Final = Figure(
    "handshakes",
    "per CPU second",
    field("handshakes_per_relay_cpu_second"),
    Better.HIGHER,
)
BYSTANDER: Final = (
    Figure("latency p50", "us", field("bystander.latency_us.p50")),
    Figure("latency p99", "us", field("bystander.latency_us.p99")),
)
TRANSFER: Final = (
    Figure(
        "rate", "MB/s", field("mb_per_second"), Better.HIGHER, Target("ratio", 0.95)
    ),
    Figure("relay CPU", "ms/MB", field("relay_cpu_ms_per_mb")),
    Figure("dropped by the relay", "packets", field("packets_dropped")),
)
CONNECT: Final = (
    Figure("server CPU", "us/connect", field("server_cpu_us_per_connect")),
    Figure("dial to first node p50", "ms", field("dial_us.p50", divisor=1e3)),
    Figure("dial to first node p99", "ms", field("dial_us.p99", divisor=1e3)),
)
ALL_HAVE_IT: Final = (
    Figure("all have it p50", "ms", field("alone.all_have_it_us.p50", divisor=1e3)),
    Figure("all have it p99", "ms", field("alone.all_have_it_us.p99", divisor=1e3)),
)
WINDOWED: Final = (
    Figure(
        "updates, 8 on the way",
        "per second",
        field("windowed.updates_per_second"),
        Better.HIGHER,
    ),
    Figure(
        "server CPU, 8 on the way",
        "us/delivery",
        field("windowed.server_cpu_us_per_delivery"),
    ),
)
DELIVERY: Final = Figure(
    "server CPU",
    "us/delivery",
    field("alone.server_cpu_us_per_delivery"),
    target=Target("ratio", 0.7),
)
PEER_MEMORY: Final = Figure(
    "memory per client", "kB", field("rss_bytes_per_client", divisor=1e3)
)
IDLE_CPU: Final = Figure(
    "server CPU, all idle",
    "% of a core",
    field("server_cores_while_idle", divisor=0.01),
)


def _aim(figure: Figure, limit: float, of: str = "ratio") -> Figure:
    """Give a figure its target."""
    return dataclasses.replace(
        figure, target=Target("ratio" if of == "ratio" else "ours", limit)
    )


_TIMES: Final = {
    "full": ("--warmup", "0.5", "--duration", "2"),
    "quick": ("--warmup", "0.3", "--duration", "0.7"),
}


def _traffic(
    name: str,
    section: Section,
    case: str,
    kind: Kind,
    options: str,
    figures: tuple[Figure, ...],
    *,
    pinned: bool = True,
) -> Scenario:
    """One of the scenarios that are measured for some time."""
    return Scenario(
        name,
        section,
        case,
        kind,
        figures,
        tls=name.startswith("tls-"),
        options=tuple(options.split()),
        full=_TIMES["full"],
        quick=_TIMES["quick"],
        pinned=pinned,
    )


def _bulk() -> list[Scenario]:
    """TLS and plain, two sizes, one frame per write and sixteen."""
    limits = {64: 1.0, 1400: 0.9}
    scenarios = []
    for tls, section in ((True, Section.BULK_TLS), (False, Section.BULK_PLAIN)):
        for frames in (1, 16):
            for size, limit in limits.items():
                writes = "one write per packet" if frames == 1 else "16 frames a write"
                scenarios.append(
                    _traffic(
                        f"{'tls' if tls else 'plain'}-{size}-k{frames}",
                        section,
                        f"{size} B, {writes}",
                        Kind.BULK,
                        f"--size {size} --frames-per-write {frames}",
                        (_aim(CPU, limit) if tls else CPU, RATE),
                    )
                )
    return scenarios


def _idle(*, tls: bool, limit: float | None) -> Scenario:
    return Scenario(
        f"{'tls' if tls else 'plain'}-idle",
        Section.MEMORY,
        "TLS" if tls else "plain TCP",
        Kind.IDLE,
        (
            MEMORY if limit is None else _aim(MEMORY, limit),
            MEMORY_ALL,
            MEMORY_LEFT,
            DESCRIPTORS_LEFT,
        ),
        tls=tls,
        full=("--connections", "5000", "--hold", "2"),
        quick=("--connections", "2000", "--hold", "0.5"),
    )


def _crowd(
    clients: int, updates: int, *, hold: float, quick: int | None = None
) -> Scenario:
    """An agent and clients at a coordinator.

    Args:
        clients: Of one agent.
        updates: Of its node, twice: one by one, and with several on the way.
        hold: Seconds of silence.
        quick: Updates in the short form; None if it is not in that.
    """
    memory = _aim(PEER_MEMORY, 2.0) if clients >= 1000 else PEER_MEMORY
    return Scenario(
        f"coord-{clients}",
        Section.CROWD,
        f"{clients:,} clients",
        Kind.CROWD,
        (DELIVERY, *WINDOWED, *ALL_HAVE_IT, memory, IDLE_CPU, *CONNECT),
        tls=False,
        options=("--clients", str(clients)),
        full=("--updates", str(updates), "--hold", f"{hold:g}", "--timeout", "170"),
        quick=None if quick is None else ("--updates", str(quick), "--hold", "1"),
        pinned=True,
    )


SCENARIOS: Final = (
    *_bulk(),
    _traffic(
        "plain-64-k128",
        Section.BULK_PLAIN,
        "64 B, 128 frames a write",
        Kind.BULK,
        "--size 64 --frames-per-write 128 --window 256",
        (_aim(CPU, 2.0, "ours"), RATE),
    ),
    _traffic(
        "tls-fanout",
        Section.FANOUT,
        "TLS",
        Kind.FANOUT,
        "--size 1400 --receivers 100",
        (_aim(CPU, 0.9), RATE),
    ),
    _traffic(
        "plain-fanout",
        Section.FANOUT,
        "plain TCP",
        Kind.FANOUT,
        "--size 1400 --receivers 100",
        (CPU, RATE),
    ),
    _traffic(
        "tls-window",
        Section.WINDOW,
        "TLS",
        Kind.BULK,
        "--size 1400 --window 1024",
        (_aim(RATE, 5.0), _aim(LOST, 1.0, "ours"), CPU),
    ),
    _traffic(
        "tls-sparse",
        Section.SPARSE,
        "TLS",
        Kind.SPARSE,
        "--size 64 --rate 1000",
        (_aim(CPU, 1.4), P50, P99),
        pinned=False,
    ),
    _traffic(
        "plain-sparse",
        Section.SPARSE,
        "plain TCP",
        Kind.SPARSE,
        "--size 64 --rate 1000",
        (CPU, P50, P99),
        pinned=False,
    ),
    _traffic(
        "tls-websocket",
        Section.WEBSOCKET,
        "1400 B, one write per packet",
        Kind.BULK,
        "--size 1400 --path-websocket",
        (CPU, RATE),
    ),
    Scenario(
        "tls-slow",
        Section.SLOW,
        "TLS",
        Kind.SLOW,
        BYSTANDER,
        full=("--seconds", "5"),
        quick=("--seconds", "1.5"),
    ),
    _idle(tls=True, limit=0.7),
    _idle(tls=False, limit=None),
    *(
        _traffic(
            name,
            Section.HANDSHAKES,
            case,
            Kind.HANDSHAKES,
            options,
            (HANDSHAKES,),
            pinned=False,
        )
        for name, case, options in (
            ("tls-handshakes-fast", "TLS, fast start", "--fast-start"),
            ("tls-handshakes", "TLS, upgrade answered", ""),
            ("plain-handshakes", "plain TCP", ""),
        )
    ),
    Scenario(
        "tls-transfer",
        Section.TRANSFER,
        f"TLS, {TRANSFER_BYTES // 1_000_000} MB",
        Kind.TRANSFER,
        TRANSFER,
    ),
    _crowd(50, 800, hold=2),
    _crowd(200, 200, hold=2, quick=60),
    _crowd(1_000, 60, hold=5, quick=15),
    _crowd(10_000, 15, hold=20),
)


def select(patterns: list[str], *, quick: bool = False) -> list[str]:
    """Return the names that match one of the patterns; all if there are none.

    Args:
        patterns: Shell patterns, such as ``tls-*``.
        quick: Only what is in the short form.
    """
    names = [
        scenario.name
        for scenario in SCENARIOS
        if not quick or scenario.quick is not None
    ] + [FRAMING]
    if not patterns:
        return names
    return [name for name in names if any(fnmatchcase(name, each) for each in patterns)]
