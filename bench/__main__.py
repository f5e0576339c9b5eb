"""The program: ``python -m bench``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import trio

from bench import framing, machine
from bench.chart import draw
from bench.figures import Side, number
from bench.judgement import find_faults, make_rows
from bench.record import Record, Run, load, save
from bench.report import kept_notes, render, summary
from bench.running import LoaderError, NoCargoError, Tools, build_loader, run_once
from bench.scenarios import FRAMING, SCENARIOS, Scenario, select
from tests.interop.tools import (
    MissingToolError,
    find_coder_program,
    find_go_program,
    find_tailcat,
)
from tools.install_peers import cache_dir, peers_required

FULL_REPETITIONS: Final = 3
QUICK_REPETITIONS: Final = 1


def main() -> int:
    """Measure or read a record, and report; return the exit status.

    0: all figures are there and all bytes were right; 1: not so; 2: a bad
    record; 130: interrupted. A program that is not installed counts only
    where real peers are required.
    """
    arguments = parse_arguments()
    if arguments.record is None:
        # Either ends what runs in order; also where a shell has us ignore
        # SIGINT, as it does with what it runs in the background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        try:
            record = measure(arguments)
        except LoaderError as exc:
            say(str(exc))
            return 1
        except KeyboardInterrupt:
            say("interrupted")
            return 130
        raw = arguments.raw or cache_dir() / "bench" / "last.json"
        save(record, raw)
        say(f"record: {raw}")
    else:
        try:
            record = load(arguments.record)
        except (OSError, msgspec.DecodeError) as exc:
            say(f"{arguments.record}: {exc}")
            return 2
    print(summary(record), end="")
    failed = bool(find_faults(record) or (record.missing and peers_required()))
    if arguments.out is not None:
        if failed or record.missing:
            say(f"{arguments.out} is left as it is, since not all is there or right")
        else:
            write_report(record, arguments.out)
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line, or end with its help."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure relay and coordinator beside the real ones.",
    )
    parser.add_argument("--quick", action="store_true", help="the short form")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SCENARIO",
        help="a name or pattern of --list; may be given again",
    )
    parser.add_argument("--list", action="store_true", help="name the scenarios")
    parser.add_argument(
        "--reps",
        type=int,
        metavar="N",
        help=f"repetitions (default {FULL_REPETITIONS}, quick {QUICK_REPETITIONS})",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the report, and its chart"
    )
    parser.add_argument(
        "--raw", type=Path, metavar="FILE", help="where the record goes"
    )
    parser.add_argument(
        "--from",
        dest="record",
        type=Path,
        metavar="FILE",
        help="measure nothing, report on this record",
    )
    arguments = parser.parse_args()
    arguments.names = select(arguments.only, quick=arguments.quick)
    if arguments.list:
        print("\n".join(arguments.names))
        parser.exit()
    if not arguments.names:
        form = " in the short form" if arguments.quick else ""
        parser.error(f"no scenario{form} is named {' or '.join(arguments.only)}")
    if arguments.reps is None:
        arguments.reps = QUICK_REPETITIONS if arguments.quick else FULL_REPETITIONS
    if arguments.reps < 1:
        parser.error("--reps must be at least 1")
    return arguments


def say(text: str) -> None:
    """Tell the one who waits; the table alone goes to standard output."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure(arguments: argparse.Namespace) -> Record:
    """Run all that was asked for and can be had."""
    began = time.monotonic()
    names: list[str] = arguments.names
    record = Record(
        quick=arguments.quick,
        repetitions=arguments.reps,
        names=names,
        sides=list(Side),
        machine={},
    )
    wanted = [scenario for scenario in SCENARIOS if scenario.name in names]
    if wanted:
        tools = find_tools(record, {scenario.section.rival for scenario in wanted})
        record.sides = [side for side in Side if tools.has(side)]
        about = machine.describe(tools.derper, tools.tailcat, tools.coderserver)
        record.machine = about | record.machine
        wanted = [scenario for scenario in wanted if tools.can_run(scenario)]
        kept = {scenario.name for scenario in wanted} | {FRAMING}
        record.names = [name for name in names if name in kept]
    else:
        record.machine = machine.describe(None, None)
    if FRAMING in names:
        repetitions = 3 if arguments.quick else 7
        record.framing, record.faults = framing.measure(repetitions)
    if wanted:
        trio.run(run_all, record, wanted, tools)
    record.machine["load average after"] = machine.load_average()
    record.seconds = time.monotonic() - began
    return record


async def run_all(record: Record, wanted: list[Scenario], tools: Tools) -> None:
    """Run the scenarios, the sides in turn, into the record.

    Repetition is the outermost loop: what disturbs the machine for a minute
    then spoils one repetition of some scenarios, and their median stands.
    """
    turns = [
        (scenario, side)
        for scenario in wanted
        for side in scenario.sides
        if side in record.sides
    ]
    total = len(turns) * record.repetitions
    for repetition in range(1, record.repetitions + 1):
        for scenario, side in turns:
            run = await run_once(scenario, side, repetition, tools, quick=record.quick)
            record.runs.append(run)
            say(f"{len(record.runs)}/{total} {one_line(scenario, run)}")


def find_tools(record: Record, rivals: set[Side]) -> Tools:
    """Find or build the programs; what is missing goes into the record.

    Args:
        record: Of this run.
        rivals: The real servers that are needed.
    """
    loader = derper = tailcat = coderserver = None
    try:
        loader = build_loader()
    except NoCargoError as exc:
        record.missing.append(str(exc))
    try:
        if Side.DERPER in rivals:
            derper = find_go_program("derper")
    except MissingToolError as exc:
        record.missing.append(str(exc))
    try:
        if Side.DERPER in rivals:
            tailcat = find_tailcat()
    except MissingToolError as exc:
        record.missing.append(str(exc))
    try:
        if Side.CODER in rivals:
            coderserver = find_coder_program("coderserver")
    except MissingToolError as exc:
        record.missing.append(str(exc))
    cores = sorted(os.sched_getaffinity(0))
    pinned = (cores[0], cores[1]) if len(cores) > 1 else None
    if shutil.which("taskset") is None:
        pinned = None
        record.missing.append("no taskset: install util-linux; nothing is pinned")
    for text in record.missing:
        say(text)
    record.machine["placement"] = (
        f"pinned servers on core {pinned[0]}, the load generator on core {pinned[1]}"
        if pinned
        else "nothing is pinned"
    )
    return Tools(loader, tailcat, pinned, derper, coderserver)


def one_line(scenario: Scenario, run: Run) -> str:
    """What a run came to, in short."""
    name = f"{scenario.name} {run.side}"
    if run.result is None:
        return f"{name}: {run.error}"
    figure = scenario.figures[0]
    value = figure.value(run.result)
    told = "no figure" if value is None else f"{number(value)} {figure.unit}"
    return f"{name}: {told}"


def write_report(record: Record, path: Path) -> None:
    """Write the report, with what is written by hand in the old one."""
    chart = path.with_suffix(".svg")
    notes = kept_notes(path.read_text(encoding="utf-8")) if path.exists() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = render(record, chart=chart.name, notes=notes)
    path.write_text(text, encoding="utf-8")
    rows = [row for row in make_rows(record) if row.figure is row.scenario.figures[0]]
    chart.write_text(draw(rows), encoding="utf-8")
    say(f"report: {path}, {chart}")


if __name__ == "__main__":
    sys.exit(main())
