"""The fuzz targets and the fuzzer, briefly: that they run, and that they find."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.mutate import MAX_LEN, fuzz, mutated
from tests.fuzz.targets import CORPUS, TARGETS, corpus_of

INPUTS = [
    pytest.param(name, path, id=f"{name}/{path.name}")
    for name in TARGETS
    for path in corpus_of(name)
]


@pytest.mark.parametrize(("name", "path"), INPUTS)
def test_committed_inputs(name: str, path: Path) -> None:
    data = path.read_bytes()
    assert len(data) <= MAX_LEN
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_some_mutations(name: str, tmp_path: Path) -> None:
    corpus = [path.read_bytes() for path in corpus_of(name)]
    outcome = fuzz(TARGETS[name], corpus, tmp_path / "crashes", executions=150)
    assert outcome.executions == 150
    assert outcome.crashes == []


@pytest.mark.parametrize("name", TARGETS)
def test_the_empty_input(name: str) -> None:
    TARGETS[name](b"")


def test_every_target_has_a_corpus_and_is_run() -> None:
    assert sorted(TARGETS) == run.target_names()
    for name in TARGETS:
        assert corpus_of(name), name
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


# -- the fuzzer itself ------------------------------------------------------


def trips_over(data: bytes) -> None:
    """A decoder with two bugs."""
    if data[:1] == b"\xff":
        raise IndexError(data[1:2].hex())
    if len(data) > 2 * data.count(b"a") + 40:
        raise ValueError


def test_fuzzer_finds_and_saves_each_bug_once(tmp_path: Path) -> None:
    crashes = tmp_path / "crashes"
    outcome = fuzz(trips_over, [b"ab", b"cdef"], crashes, executions=5000)
    assert outcome.executions == 5000
    assert sorted(outcome.crashes) == sorted(crashes.iterdir())
    kinds = set()
    for path in outcome.crashes:
        with pytest.raises((IndexError, ValueError)) as caught:
            trips_over(path.read_bytes())
        kinds.add(caught.type)
    assert kinds == {IndexError, ValueError}
    assert len(outcome.crashes) == 2


def test_fuzzer_tries_the_corpus_first() -> None:
    seen: list[bytes] = []
    corpus = [b"one", b"two", b"x" * (MAX_LEN + 1)]
    outcome = fuzz(seen.append, corpus, Path("unused"), executions=10)
    assert seen[:3] == corpus
    assert (len(seen), outcome.executions, outcome.crashes) == (10, 10, [])


def test_fuzzer_stops_in_time() -> None:
    outcome = fuzz(trips_over, [b"\xff"], Path("unused"), seconds=0)
    assert outcome.executions == 0


def test_mutations_differ_and_come_again() -> None:
    pool = [b"", b"abc", bytes(MAX_LEN)]
    made = [mutated(pool, random.Random(seed)) for seed in range(300)]
    assert made == [mutated(pool, random.Random(seed)) for seed in range(300)]
    assert len(set(made)) > 200
    assert max(map(len, made)) <= MAX_LEN


# -- the report -------------------------------------------------------------


def test_table_names_what_was_found() -> None:
    rows = [
        run.Row("stun", 1000, 9, ()),
        run.Row("keys", 10, 2, (Path("crash-1"),)),
        run.Row("frames", 0, 2, (), failure="hung"),
    ]
    assert run.table(rows, "atheris", 30).splitlines() == [
        "3 targets, 30 s, 1010 executions, engine atheris",
        "target                executions  corpus  crashes",
        "stun                        1000       9        0",
        "keys                          10       2        1",
        "    crash-1",
        "frames                         0       2        0  hung",
    ]


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        ([run.Row("stun", 5, 1, ())], 0),
        ([run.Row("stun", 5, 1, ()), run.Row("keys", 5, 1, (Path("c"),))], 1),
        ([run.Row("stun", 5, 1, (), failure="exit status 1")], 1),
        # A fuzzer that tried nothing has found nothing, and proves nothing.
        ([run.Row("stun", 0, 1, ())], 1),
    ],
)
def test_exit_status(
    rows: list[run.Row],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    supply = iter(rows)
    names = [row.target for row in rows]
    seconds: list[float] = []

    def fake(name: str, share: float, *, build: Path) -> run.Row:
        seconds.append(share)
        return next(supply)

    monkeypatch.setattr(run, "target_names", lambda: names)
    monkeypatch.setattr(run, "run_target", fake)
    report = tmp_path / "report.json"
    assert run.main(["--seconds", "8", "--json", str(report)]) == status
    assert seconds == [8 / len(rows)] * len(rows)
    assert capsys.readouterr().out.count("\n") >= 2 + len(rows)
    assert '"executions": ' in report.read_text()


@pytest.mark.slow
def test_a_worker_runs(tmp_path: Path) -> None:
    row = run.run_target("server_key", 0.5, build=tmp_path)
    assert (row.target, row.crashes, row.failure) == ("server_key", (), "")
    assert row.executions > 100
