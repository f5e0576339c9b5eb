"""Fuzz every decoder for a while, and say what came of it.

    python tests/fuzz/run.py --seconds 300 [--target stun]

The time is divided among the targets. Where atheris is installed
(requirements/fuzz.txt) it leads by coverage; else inputs are mutated blindly.
What it learns is kept in ``build/fuzz/corpus`` for the next run.

The exit status is 1 if an input made a target raise, hang, or take too much
memory; the inputs are in ``build/fuzz/crashes``. To see one again::

    python tests/fuzz/run.py --target stun --input build/fuzz/crashes/stun/...
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    # As a script, the folder of this file comes first; what we import is
    # named from the root.
    sys.path[0] = str(ROOT)

from tests.fuzz.mutate import MAX_LEN, fuzz  # noqa: E402

__all__ = ("Row", "main", "run_target", "table")

BUILD: Final = ROOT / "build" / "fuzz"
COMMITTED: Final = ROOT / "tests" / "fuzz" / "corpus"

# Seconds for one input, and for a worker beyond its time (the start included).
INPUT_TIMEOUT: Final = 20
GRACE: Final = 90.0
MEMORY_MB: Final = 2048

# libFuzzer's names for what it saves.
_ARTIFACTS: Final = re.compile(r"(crash|timeout|oom|leak)-")
_EXECUTIONS: Final = re.compile(rb"stat::number_of_executed_units:\s*(\d+)")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    target: str
    executions: int
    corpus: int
    crashes: tuple[Path, ...]
    failure: str = ""  # of the fuzzer itself


def target_names() -> list[str]:
    """All targets: each has a corpus. Nothing of ours is imported yet."""
    return sorted(path.name for path in COMMITTED.iterdir() if path.is_dir())


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


# -- the side that reports --------------------------------------------------


def run_target(name: str, seconds: float, *, build: Path = BUILD) -> Row:
    """Fuzz one target in a process of its own: a crash ends only that."""
    work, crashes = build / "corpus" / name, build / "crashes" / name
    for folder in (work, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(crashes.iterdir())
    command = [
        sys.executable, str(Path(__file__).resolve()), "--worker",
        "--target", name, "--seconds", str(seconds), "--build", str(build),
    ]  # fmt: skip
    failure = ""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, timeout=seconds + GRACE, check=False
        )
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired as exc:
        output = (exc.stdout or b"") + (exc.stderr or b"")
        failure = "hung"
    else:
        found = set(crashes.iterdir()) - before
        if done.returncode and not found:
            failure = f"exit status {done.returncode}"
    new = sorted(
        path for path in set(crashes.iterdir()) - before if _ARTIFACTS.match(path.name)
    )
    if new or failure:
        sys.stderr.write(output.decode("utf-8", "replace")[-8000:] + "\n")
    executions = _EXECUTIONS.search(output)
    return Row(
        target=name,
        executions=int(executions[1]) if executions else 0,
        corpus=sum(1 for folder in (work, COMMITTED / name) for _ in folder.iterdir()),
        crashes=tuple(new),
        failure=failure,
    )


def table(rows: list[Row], engine: str, seconds: float) -> str:
    """The report, for people."""
    total = sum(row.executions for row in rows)
    lines = [
        f"{len(rows)} targets, {seconds:.0f} s, {total} executions, engine {engine}",
        f"{'target':<20}{'executions':>12}{'corpus':>8}{'crashes':>9}",
    ]
    for row in rows:
        lines.append(
            f"{row.target:<20}{row.executions:>12}{row.corpus:>8}"
            f"{len(row.crashes):>9}  {row.failure}".rstrip()
        )
        lines += (f"    {path}" for path in row.crashes)
    return "\n".join(lines) + "\n"


# -- the side that fuzzes ---------------------------------------------------


def work(name: str, seconds: float, build: Path) -> None:
    """Fuzz one target in this process."""
    corpus, crashes = build / "corpus" / name, build / "crashes" / name
    if has_atheris():
        _run_atheris(
            name,
            f"-max_total_time={max(1, round(seconds))}",
            "-print_final_stats=1",
            f"-max_len={MAX_LEN}",
            f"-timeout={INPUT_TIMEOUT}",
            f"-rss_limit_mb={MEMORY_MB}",
            f"-artifact_prefix={crashes}{os.sep}",
            str(corpus),
            str(COMMITTED / name),
        )
    else:
        from tests.fuzz.targets import TARGETS, corpus_of

        inputs = [path.read_bytes() for path in corpus_of(name)]
        outcome = fuzz(TARGETS[name], inputs, crashes, seconds=seconds)
        sys.stdout.write(f"stat::number_of_executed_units: {outcome.executions}\n")


def _run_atheris(name: str, *arguments: str) -> None:
    """Does not return: libFuzzer ends the process."""
    # No types of it are to be had, and it may not be there.
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["tailnet", "relay"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


# -- the command ------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description="Fuzz every decoder.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets")
    parser.add_argument("--target", choices=target_names(), help="only this one")
    parser.add_argument("--input", type=Path, help="only run this file")
    parser.add_argument("--json", type=Path, help="write the report there too")
    parser.add_argument("--build", type=Path, default=BUILD, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.input is not None:
        from tests.fuzz.targets import TARGETS

        TARGETS[options.target](options.input.read_bytes())
        return 0
    if options.worker:
        work(options.target, options.seconds, options.build)
        return 0
    names = [options.target] if options.target else target_names()
    engine = "atheris" if has_atheris() else "mutations (atheris is not installed)"
    started = time.monotonic()
    share = options.seconds / len(names)
    rows = [run_target(name, share, build=options.build) for name in names]
    seconds = time.monotonic() - started
    sys.stdout.write(table(rows, engine, seconds))
    if options.json is not None:
        report = {
            "engine": engine,
            "seconds": round(seconds, 1),
            "targets": {
                row.target: {
                    "executions": row.executions,
                    "corpus": row.corpus,
                    "crashes": len(row.crashes),
                }
                for row in rows
            },
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(row.crashes or row.failure or not row.executions for row in rows))


if __name__ == "__main__":
    sys.exit(main())
