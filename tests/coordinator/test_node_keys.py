"""Node keys: known while somebody has them, and a little longer."""

from __future__ import annotations

import sys

from hypothesis import given, strategies as st

from tailnet.coordinator.node_keys import GRACE, MAX_LOST_KEYS, NodeKeys

KEY, KEY2 = b"k" * 32, b"l" * 32
ONE, TWO = b"1" * 16, b"2" * 16


def test_published_and_lost() -> None:
    keys = NodeKeys()
    assert not keys.knows(KEY, 0)
    keys.publish(KEY, ONE)
    assert keys.knows(KEY, 1e9)
    assert keys.next_deadline() is None
    keys.lose(KEY, ONE, 100)
    assert keys.next_deadline() == 100 + GRACE
    assert keys.knows(KEY, 99 + GRACE)
    assert not keys.knows(KEY, 100 + GRACE)
    assert keys.expire(99 + GRACE) == []
    assert keys.expire(100 + GRACE) == [KEY]
    assert keys.expire(1e9) == []
    assert keys.next_deadline() is None


def test_back_in_time() -> None:
    keys = NodeKeys()
    keys.publish(KEY, ONE)
    keys.lose(KEY, ONE, 0)
    keys.publish(KEY, ONE)
    assert keys.expire(GRACE) == []
    assert keys.knows(KEY, 1e9)
    keys.lose(KEY, ONE, GRACE)
    assert keys.expire(2 * GRACE) == [KEY]


def test_a_peer_that_changes_its_key_all_the_time() -> None:
    keys = NodeKeys()
    keys.publish(KEY, TWO)
    keys.lose(KEY, TWO, 0)
    made = [number.to_bytes(32, "big") for number in range(10_000)]
    gone = []
    for now, key in enumerate(made):
        keys.publish(key, ONE)
        gone += keys.lose(key, ONE, now / 1e6)
    assert gone == made[:-MAX_LOST_KEYS]
    assert not keys.knows(made[-MAX_LOST_KEYS - 1], 1)
    assert keys.knows(made[-MAX_LOST_KEYS], 1)
    assert keys.knows(KEY, 1)  # of somebody else
    assert sys.getsizeof(keys._deadlines) < 64 * 1024
    # One that is back does not count.
    keys.publish(made[-MAX_LOST_KEYS], ONE)
    keys.publish(KEY, ONE)
    assert keys.lose(KEY, ONE, 1) == []
    assert set(keys.expire(1e9)) == {KEY, *made[1 - MAX_LOST_KEYS :]}
    assert keys._lost == {}


def test_lost_twice_counts_from_the_last_time() -> None:
    keys = NodeKeys()
    keys.publish(KEY, ONE)
    keys.lose(KEY, ONE, 0)
    keys.lose(KEY, ONE, 5)
    keys.publish(KEY, ONE)
    keys.lose(KEY, ONE, 10)
    assert keys.expire(GRACE + 5) == []
    assert keys.expire(GRACE + 10) == [KEY]


def test_a_key_of_two_peers() -> None:
    """A peer that publishes another's key takes nothing from it."""
    keys = NodeKeys()
    keys.publish(KEY, ONE)
    keys.lose(KEY, ONE, 0)
    keys.publish(KEY, TWO)
    assert keys.forget(TWO) == []
    assert keys.knows(KEY, 1)
    assert keys.expire(GRACE) == [KEY]


def test_forget() -> None:
    keys = NodeKeys()
    keys.publish(KEY, ONE)
    keys.lose(KEY, ONE, 0)
    keys.publish(KEY2, ONE)
    assert sorted(keys.forget(ONE)) == [KEY, KEY2]
    assert keys.forget(ONE) == []
    assert not keys.knows(KEY, 1)
    assert keys.expire(1e9) == []


def test_forget_one_key() -> None:
    keys = NodeKeys()
    keys.publish(KEY, ONE)
    keys.publish(KEY2, ONE)
    assert keys.forget_key(KEY, ONE)
    assert not keys.forget_key(KEY, ONE)
    assert keys.knows(KEY2, 0)


def test_what_was_never_published() -> None:
    keys = NodeKeys()
    keys.lose(KEY, ONE, 0)
    assert not keys.knows(KEY, 0)
    assert not keys.forget_key(KEY, ONE)


STEP = st.tuples(
    st.sampled_from(["publish", "lose", "forget", "expire"]),
    st.sampled_from([KEY, KEY2]),
    st.sampled_from([ONE, TWO]),
    st.sampled_from([1.0, GRACE / 2, GRACE]),
)


@given(st.lists(STEP, max_size=30))
def test_any_steps(steps: list[tuple[str, bytes, bytes, float]]) -> None:
    """A key is reported gone exactly when it stops being known."""
    keys, now = NodeKeys(), 0.0
    ends: dict[tuple[bytes, bytes], float] = {}
    for what, key, peer, wait in steps:
        now += wait
        known = {k for (k, _), end in ends.items() if end > now}
        before = {k for k, _ in ends}
        assert {k for k in (KEY, KEY2) if keys.knows(k, now)} == known
        gone: list[bytes] = []
        if what == "publish":
            keys.publish(key, peer)
            ends[key, peer] = float("inf")
        elif what == "lose":
            keys.lose(key, peer, now)
            if ends.get((key, peer)) == float("inf"):
                ends[key, peer] = now + GRACE
        elif what == "forget":
            gone = keys.forget(peer)
            ends = {place: end for place, end in ends.items() if place[1] != peer}
        else:
            gone = keys.expire(now)
            ends = {place: end for place, end in ends.items() if end > now}
        assert sorted(gone) == sorted(before - {k for k, _ in ends} - {b""})
