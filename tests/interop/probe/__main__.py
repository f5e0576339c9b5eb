r"""``python -m tests.interop.probe``: ask one relay, or compare two records.

::

    python -m tests.interop.probe --addr 127.0.0.1:3340
    python -m tests.interop.probe --addr 127.0.0.1:443 --tls --http-port 80 \
        --stun 3478 --json > answers.json
    python -m tests.interop.probe --compare derper.json ours.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import trio
from rich.console import Console
from rich.table import Table

from tests.interop.probe.answers import Answers, Json, compare
from tests.interop.probe.catalog import SCENARIOS, probe
from tests.interop.probe.wire import Target


def main() -> int:
    """Run the command line; 0 if all is well, 1 if two records differ."""
    args = _parser().parse_args()
    if args.compare:
        left, right = (json.loads(Path(path).read_text()) for path in args.compare)
        differences = compare(left, right)
        for found in differences:
            sys.stdout.write(f"{found}\n")
        sys.stdout.write(f"{len(differences)} differences\n")
        return 1 if differences else 0
    if args.list:
        for scenario in SCENARIOS:
            sys.stdout.write(f"{scenario.name}\n")
        return 0
    if args.addr is None:
        sys.stderr.write("probe: give --addr HOST:PORT, or --compare A B\n")
        return 2
    host, _, port = args.addr.rpartition(":")
    target = Target(
        host.strip("[]"),
        int(port),
        tls=args.tls,
        http_port=args.http_port,
        stun_port=args.stun,
    )
    only: list[str] = args.only or [""]

    async def run() -> Answers:
        return await probe(
            target, wanted=lambda item: any(text in item.name for text in only)
        )

    answers = trio.run(run)
    if args.json:
        json.dump(answers, sys.stdout, indent=1, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        _print_tables(answers)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.probe")
    parser.add_argument("--addr", metavar="HOST:PORT", help="the relay to ask")
    parser.add_argument("--tls", action="store_true", help="it speaks TLS")
    parser.add_argument("--http-port", type=int, help="its plain helper port")
    parser.add_argument("--stun", type=int, metavar="PORT", help="its STUN port")
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="only scenarios with TEXT in their name; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--compare", nargs=2, metavar=("REFERENCE", "CANDIDATE"), help="JSON files"
    )
    return parser


def _print_tables(answers: Answers) -> None:
    console = Console()
    for scenario, cases in answers.items():
        table = Table("case", "answer", title=scenario, title_justify="left")
        for case, answer in cases.items():
            table.add_row(case, _text(answer), end_section=False)
        console.print(table, markup=False)


def _text(answer: Json) -> str:
    match answer:
        case str():
            return answer
        case Mapping():
            return "\n".join(f"{name}: {_text(part)}" for name, part in answer.items())
        case _:
            return json.dumps(answer, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
