from __future__ import annotations

from hypothesis import given, strategies as st

from tailnet.sdk.pacing import LASTING, MAX_DELAY, MIN_DELAY, RedialDelays


def delays(random: float, count: int) -> list[float]:
    pacing = RedialDelays(lambda: random)
    return [pacing.next_delay() for _ in range(count)]


def test_they_double_up_to_ten_seconds() -> None:
    # The greatest number that ``random`` comes near to, and the least.
    assert delays(1.0, 9) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert delays(0.0, 9) == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=30))
def test_they_stay_within_bounds(draws: list[float]) -> None:
    rest = iter(draws)
    pacing = RedialDelays(lambda: next(rest))
    for _ in draws:
        assert MIN_DELAY <= pacing.next_delay() <= MAX_DELAY


def test_only_a_connection_that_lasted_starts_them_anew() -> None:
    pacing = RedialDelays(lambda: 1.0)
    assert [pacing.connection_lost(LASTING / 2) for _ in range(3)] == [0.1, 0.2, 0.4]
    assert pacing.failures == 3
    assert pacing.connection_lost(LASTING) == 0.1
    assert pacing.failures == 1
