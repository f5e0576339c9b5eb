"""The program's exit status and files, from records made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.figures import Side
from bench.record import Record, save
from tests.bench.results import good_record, result_of


@pytest.fixture(autouse=True)
def _peers_are_not_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILNET_REQUIRE_PEERS", "0")


def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: Record, *options: str
) -> int:
    save(record, tmp_path / "record.json")
    argv = ["bench", "--from", str(tmp_path / "record.json"), *options]
    monkeypatch.setattr(sys, "argv", argv)
    return main()


def test_a_good_record_makes_a_report(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "docs" / "benchmarks.md"
    assert run(monkeypatch, tmp_path, good_record(), "--out", str(out)) == 0
    assert "](benchmarks.svg)" in out.read_text()
    assert out.with_suffix(".svg").read_text().startswith("<svg")
    assert "| tls-transfer " in capsys.readouterr().out


def test_missed_targets_do_not_fail_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = good_record("tls-64-k1", repetitions=1)
    result_of(record, "tls-64-k1")["relay_cpu_us_per_packet"] = 1e6
    assert run(monkeypatch, tmp_path, record) == 0


def test_a_corrupt_packet_fails_it_and_leaves_the_report(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = good_record("tls-64-k1", repetitions=1)
    result_of(record, "tls-64-k1", Side.OURS)["corrupt"] = 1
    out = tmp_path / "benchmarks.md"
    out.write_text("the last good one")
    assert run(monkeypatch, tmp_path, record, "--out", str(out)) == 1
    assert out.read_text() == "the last good one"
    assert "1 packets corrupt" in capsys.readouterr().out


def test_a_missing_figure_fails_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = good_record("tls-sparse", repetitions=1)
    del result_of(record, "tls-sparse")["latency_us"]
    assert run(monkeypatch, tmp_path, record) == 1


def test_a_missing_program_fails_it_where_peers_are_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = good_record("tls-64-k1")
    record.missing.append("no Go")
    assert run(monkeypatch, tmp_path, record) == 0
    monkeypatch.setenv("TAILNET_REQUIRE_PEERS", "1")
    assert run(monkeypatch, tmp_path, record) == 1


def test_notes_in_the_old_report_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "benchmarks.md"
    assert run(monkeypatch, tmp_path, good_record(), "--out", str(out)) == 0
    begin, end = "written again -->\n", "<!-- end of the notes -->"
    text = out.read_text()
    assert text.count(begin) == text.count(end) == 1
    head, rest = text.split(begin)
    out.write_text(f"{head}{begin}\nWhy it misses.\n\n{rest[rest.index(end) :]}")
    assert run(monkeypatch, tmp_path, good_record(), "--out", str(out)) == 0
    assert "Why it misses." in out.read_text()


def test_what_is_no_record_is_told(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--from", str(tmp_path / "none.json")])
    assert main() == 2
    assert "none.json" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--only", "nothing"], ["--reps", "0"]])
def test_nonsense_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
