from __future__ import annotations

import pytest

from bench.figures import Better, Figure, Spread, Target, field, number


def test_the_median_and_the_range() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([4.0, 1.0]) == Spread(2.5, 1.0, 4.0, 2)
    assert Spread.of([]) is None


def test_one_repetition_has_no_range() -> None:
    assert str(Spread.of([1.5])) == "1.50"
    assert str(Spread.of([1.5, 2.5, 1000])) == "2.50 (1.50 to 1,000)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.456, "0.46"),
        (9.994, "9.99"),
        (12.34, "12.3"),
        (123.4, "123"),
        (-123.4, "-123"),
        (1234567.8, "1,234,568"),
    ],
)
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_field_is_read_from_inside() -> None:
    assert field("a.b", divisor=1000)({"a": {"b": 2500}}) == 2.5


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"a": None},
        {"a": {"b": None}},
        {"a": {"b": float("nan")}},
        {"a": {"b": float("inf")}},
    ],
)
def test_what_is_no_number_is_a_missing_figure(result: dict[str, object]) -> None:
    assert Figure("x", "us", field("a.b")).value(result) is None


def test_a_division_by_nothing_is_a_missing_figure() -> None:
    assert (
        Figure("x", "%", lambda result: 1 / result["none"]).value({"none": 0}) is None
    )


def test_the_limit_itself_is_met() -> None:
    low = Figure("x", "us", field("a"), target=Target("ratio", 0.9))
    assert (low.is_met(0.9), low.is_met(0.91)) == (True, False)
    assert low.target_text() == "ratio <= 0.9"
    high = Figure("x", "MB/s", field("a"), Better.HIGHER, Target("ours", 5.0))
    assert (high.is_met(5.0), high.is_met(4.9)) == (True, False)
    assert high.target_text() == "ours >= 5"
