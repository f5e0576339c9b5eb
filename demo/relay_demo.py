"""Two real Tailscale clients send a file through the relay.

``make demo`` runs this. The relay speaks TLS with a self-signed certificate
that the clients pin by its hash, and answers STUN; the clients get their DERP
map over HTTP and may not send to each other directly, so that every byte goes
through the relay. Everything is on loopback and ends with the demo.

The figures of the closing table are the relay's own counters
(``/debug/varz``), what the operating system counted for its process, and the
hash of what arrived.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import psutil
import trio
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from tests.interop.programs import ProgramError
from tests.interop.relay_program import Counters, Relay, RelayKind, open_relay
from tests.interop.tailcat import (
    DamagedFileError,
    Tailcat,
    Transfer,
    make_file,
    send_file,
)
from tests.interop.tools import MissingToolError, find_tailcat

MEGABYTE: Final = 1_000_000
# Not counted by derper, which has no such metric.
FAST_STARTS: Final = "relay_fast_starts"


async def run_demo(console: Console, kind: RelayKind, size: int) -> None:
    """Run the relay and the two clients, and print what came of it.

    Args:
        console: Where to.
        kind: Whose relay.
        size: Bytes to send.

    Raises:
        MissingToolError: A program is not installed.
        ProgramError: A program failed.
        DamagedFileError: The bytes that arrived are not those sent.
    """
    tailcat = find_tailcat()
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as name:
        folder = Path(name)
        source = make_file(folder / "source", size)
        async with open_relay(folder / "relay", kind=kind) as relay:
            console.print(
                f"relay     {describe(relay)}\n"
                f"clients   2 x tailcat (Tailscale's own data plane), DERP only\n"
                f"file      {size / MEGABYTE:.0f} MB of random bytes",
                highlight=False,
                soft_wrap=True,
            )
            sender = Tailcat.for_relay(tailcat, folder / "sender", relay)
            receiver = Tailcat.for_relay(tailcat, folder / "receiver", relay)
            with show_progress(console, size) as report:
                transfer = await send_file(
                    relay, sender, receiver, source, report=report, timeout=100
                )
            counters = await relay.counters()
            process = psutil.Process(relay.program.process.pid)
            cpu = process.cpu_times()
            console.print(results(counters, transfer, size, cpu=cpu.user + cpu.system))


def describe(relay: Relay) -> str:
    """One line about the relay: whose, where, and how it is known."""
    name = "tailnet-relay" if relay.kind is RelayKind.OURS else "derper (Tailscale's)"
    return (
        f"{name}, DERP over TLS on {relay.host}:{relay.port},"
        f" STUN on UDP port {relay.stun_port}, certificate pinned"
        f" by sha256 {relay.leaf_sha256()[:12]}..."
    )


@contextlib.contextmanager
def show_progress(console: Console, size: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yields what to call with the bytes so far."""
    with Progress(
        TextColumn("sending  "),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("", total=size)
        yield lambda arrived: progress.update(task, completed=arrived)


def results(counters: Counters, transfer: Transfer, size: int, *, cpu: float) -> Table:
    """Make the closing table.

    Args:
        counters: The relay's.
        transfer: The file that arrived.
        size: Its bytes.
        cpu: Seconds of processor time that the relay has used.
    """
    packets = counters.matching("derp_packets_received_kind")
    drops = {
        labels: count
        for labels, count in counters.matching("derp_packets_dropped").items()
        if count
    }
    relayed = counters["derp_packets_sent"]
    fast = counters.get(FAST_STARTS)
    accepts = counters["derp_accepts"]
    stun = counters['stun_requests{disposition="success"}']
    table = Table(show_header=False)
    table.add_row("bytes equal", f"yes, {size:,} (sha256 {transfer.sha256[:16]}...)")
    table.add_row(
        "rate",
        f"{size / MEGABYTE / transfer.seconds:.1f} MB/s"
        f" ({transfer.seconds:.2f} s with connecting)",
    )
    table.add_row("packets received", listed(packets))
    table.add_row("packets relayed", f"{relayed:,.0f}")
    table.add_row("packets dropped", listed(drops) if drops else "none")
    table.add_row(
        "relay's CPU time", f"{cpu:.2f} s ({cpu / relayed * 1e6:.1f} us a packet)"
    )
    table.add_row("DERP handshakes", f"{accepts:.0f}")
    if fast is None:
        table.add_row("fast start", "not counted by this relay")
    else:
        answer = "yes" if fast == accepts else "no" if not fast else "partly"
        table.add_row("fast start", f"{answer} ({fast:.0f} of {accepts:.0f})")
    table.add_row("STUN answers", f"{stun:.0f}")
    return table


def listed(counts: Mapping[str, float]) -> str:
    """Counts by label: ``{kind="disco"}: 3`` becomes ``disco 3``."""
    parts = []
    for labels, count in counts.items():
        words = [label.split('"')[1] for label in labels.strip("{}").split(",")]
        parts.append(f"{' '.join(words)} {count:,.0f}")
    return ", ".join(parts)


def one_line(exc: Exception) -> str:
    """The error, and the last thing the program said about it."""
    first, *rest = str(exc).splitlines()
    return " ".join(
        [first.partition("; its last")[0], *(f"({x.strip()})" for x in rest[-1:])]
    )


async def main(kind: RelayKind, size: int, *, verbose: bool) -> int:
    """Run the demo until it is done or a signal comes; return its status."""
    console = Console()
    # Where a log or CI reads, lines must not be cut to a guessed width.
    if not console.is_terminal:
        console = Console(width=120)
    status = 130
    async with trio.open_nursery() as nursery:

        async def stop_on_signal() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()
                    return

        nursery.start_soon(stop_on_signal)
        try:
            await run_demo(console, kind, size)
            status = 0
        except (MissingToolError, ProgramError, DamagedFileError) as exc:
            sys.stderr.write(f"demo: {exc if verbose else one_line(exc)}\n")
            status = 1
        nursery.cancel_scope.cancel()
    return status


def parse_arguments() -> argparse.Namespace:
    """Read the command line, or end with its help."""
    parser = argparse.ArgumentParser(
        prog="make demo DEMO='...'",
        description="Two real Tailscale clients send a file through the relay.",
    )
    parser.add_argument(
        "--relay",
        type=RelayKind,
        default=RelayKind.OURS,
        metavar="ours|derper",
        help="whose relay; derper, for comparison, needs `make peers`",
    )
    parser.add_argument(
        "--megabytes", type=int, default=50, help="size of the file (default: 50)"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show a failed program's last lines"
    )
    arguments = parser.parse_args()
    if arguments.megabytes < 1:
        parser.error("--megabytes must be at least 1")
    return arguments


if __name__ == "__main__":
    chosen = parse_arguments()
    sys.exit(
        trio.run(
            partial(
                main,
                chosen.relay,
                chosen.megabytes * MEGABYTE,
                verbose=chosen.verbose,
            )
        )
    )
