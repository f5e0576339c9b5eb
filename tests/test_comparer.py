"""The comparer of two relays' answers, and what makes answers.

What it compares in earnest: ``interop/test_conformance.py``.
"""

from __future__ import annotations

import copy
from typing import Final

import pytest
import trio

from tests.interop.probe.answers import (
    PROBE_ERROR,
    Answers,
    Json,
    about,
    compare,
    judge,
)
from tests.interop.probe.catalog import SCENARIOS
from tests.interop.probe.scenario import run_cases
from tests.interop.probe.wire import Target

RECORD: Final[Answers] = {
    "pings": {"7 bytes": "closed", "8 bytes": ["Pong(abcdefgh)", "alive"]},
    "pages": {"GET /": {"status": 200, "headers": {"x-frame-options": "DENY"}}},
}


def changed(scenario: str, case: str, answer: Json) -> Answers:
    answers = copy.deepcopy(RECORD)
    answers[scenario][case] = answer
    return answers


def test_equal_answers_have_no_faults() -> None:
    assert compare(RECORD, copy.deepcopy(RECORD)) == []
    assert judge(RECORD, copy.deepcopy(RECORD), {}) == []


@pytest.mark.parametrize(
    ("scenario", "case", "answer"),
    [
        ("pings", "7 bytes", "closed after about 2 s"),
        ("pings", "8 bytes", ["Pong(abcdefgh)", "closed"]),
        ("pings", "8 bytes", ["Pong(abcdefgh)"]),
        ("pages", "GET /", {"status": 404, "headers": {"x-frame-options": "DENY"}}),
        ("pages", "GET /", {"status": 200, "headers": {}}),
        ("pages", "GET /", None),
    ],
)
def test_one_changed_answer_is_one_fault(
    scenario: str, case: str, answer: Json
) -> None:
    (fault,) = judge(RECORD, changed(scenario, case, answer), {})
    assert fault.startswith(f"{scenario}/{case}\n")


def test_a_case_that_only_one_side_has_is_a_fault() -> None:
    more = changed("pings", "9 bytes", "closed")
    assert len(judge(RECORD, more, {})) == 1
    assert len(judge(more, RECORD, {})) == 1


def test_a_listed_difference_is_no_fault() -> None:
    assert judge(RECORD, changed("pings", "7 bytes", "x"), {"pings/7 bytes": ""}) == []


def test_a_listed_difference_that_does_not_differ_is_a_fault() -> None:
    (fault,) = judge(RECORD, RECORD, {"pings/7 bytes": "why"})
    assert "does not differ" in fault


def test_a_listed_case_that_was_not_asked_is_no_fault() -> None:
    assert judge(RECORD, RECORD, {"TLS silence/nothing": "why"}) == []


def test_a_failed_probe_is_a_fault_even_if_both_fail_and_it_is_listed() -> None:
    failed = changed("pings", "7 bytes", {PROBE_ERROR: "TooSlowError"})
    assert len(judge(failed, failed, {})) == 1
    assert len(judge(failed, failed, {"pings/7 bytes": "why"})) == 1


# -- what makes answers -------------------------------------------------------


async def test_a_case_that_raises_spoils_no_other() -> None:
    async def right() -> Json:
        return "closed"

    async def wrong() -> Json:
        raise ValueError("no such frame")

    answers = await run_cases({"a": right, "b": wrong, "c": right}, at_once=1)
    assert answers == {
        "a": "closed",
        "b": {PROBE_ERROR: "ValueError: no such frame"},
        "c": "closed",
    }


async def test_a_case_that_hangs_is_a_failed_probe(autojump_clock: object) -> None:
    async def hang() -> Json:
        await trio.sleep_forever()

    answers = await run_cases({"a": hang})
    assert judge({"x": answers}, {"x": answers}, {})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "at once"),
        (2.4, "after about 2 s"),
        (10.1, "after about 10 s"),
        (30.0, "after about 30 s"),
        (60.1, "after 60 to 65 s"),
        (65.0, "after 60 to 65 s"),
        (20.0, "after 20 s"),
        (50.0, "after 50 s"),
    ],
)
def test_classes_of_times(seconds: float, text: str) -> None:
    assert about(seconds) == text


def test_what_differs_from_relay_to_relay_is_masked() -> None:
    target = Target("127.0.0.1", 4433, http_port=8080)
    text = f"https://127.0.0.1:4433/x http://127.0.0.1:8080 {'ab' * 32}"
    masked = "https://<host>:<port>/x http://<host>:<http port> <64 hex digits>"
    assert target.mask(text) == masked


def test_scenarios_have_names_of_their_own() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(names) == len(set(names))
    # A case is looked for by scenario and case with a slash between.
    assert not [name for name in names if "/" in name]
