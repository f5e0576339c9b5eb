"""Resume tokens: issued, verified, rotated, forged."""

from __future__ import annotations

import base64
import json
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from hypothesis import given, strategies as st

from tailnet.coordinator.resume import REFRESH_IN, TOKEN_LIFETIME, ResumeTokens
from tailnet.errors import LocalProtocolError, ResumeTokenError

PEER = UUID("8c7d5f4e-0b1a-4c2d-9e3f-a1b2c3d4e5f6")
OLD = ("old", b"o" * 64)
NEW = ("new", b"n" * 64)
START = 1_700_000_000.75


class Clock:
    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def part(token: str, index: int) -> dict[str, Any]:
    raw = token.split(".")[index]
    found = json.loads(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))
    assert isinstance(found, dict)
    return found


def forge(
    claims: dict[str, Any], *, key: tuple[str, bytes] = OLD, **headers: Any
) -> str:
    return jwt.encode(
        claims, key[1], algorithm="HS512", headers={"kid": key[0], **headers}
    )


def test_a_token(clock: Clock) -> None:
    tokens = ResumeTokens(clock, [OLD])
    token, refresh_in, expires_at = tokens.issue(PEER)
    assert refresh_in == timedelta(hours=12)
    assert expires_at.timestamp() == int(START) + 24 * 3600
    assert expires_at.tzinfo is UTC
    assert part(token, 0) == {"alg": "HS512", "kid": "old"}
    assert part(token, 1) == {"sub": str(PEER), "exp": expires_at.timestamp()}
    assert tokens.verify(token) == PEER


def test_it_looks_like_a_recorded_one(clock: Clock) -> None:
    recorded = Path(__file__).parents[1] / "data" / "coder" / "direct.jsonl"
    (theirs,) = [
        event["json"]["token"]
        for event in map(json.loads, recorded.read_text().splitlines())
        if event["ev"] == "drpc" and "token" in event.get("json", ())
    ]
    ours = ResumeTokens(clock, [OLD]).issue(PEER).token
    for index in range(2):
        assert part(ours, index).keys() == part(theirs, index).keys()
    assert part(theirs, 0)["alg"] == part(ours, 0)["alg"]


def test_expiry(clock: Clock) -> None:
    tokens = ResumeTokens(clock, [OLD])
    token, _, expires_at = tokens.issue(PEER)
    clock.time = expires_at.timestamp() - 0.5
    assert tokens.verify(token) == PEER
    clock.time = expires_at.timestamp()
    with pytest.raises(ResumeTokenError, match=r"^expired$"):
        tokens.verify(token)
    assert REFRESH_IN < TOKEN_LIFETIME


def test_rotation(clock: Clock) -> None:
    tokens = ResumeTokens(clock, [OLD])
    old = tokens.issue(PEER).token
    tokens.use([NEW, OLD])
    new = tokens.issue(PEER).token
    assert part(new, 0)["kid"] == "new"
    assert tokens.verify(old) == tokens.verify(new) == PEER
    tokens.use([NEW])
    assert tokens.verify(new) == PEER
    with pytest.raises(ResumeTokenError, match="unknown key"):
        tokens.verify(old)


def test_keys_over_a_restart(clock: Clock) -> None:
    token = ResumeTokens(clock, [NEW, OLD]).issue(PEER).token
    assert ResumeTokens(clock, [OLD, NEW]).verify(token) == PEER


def test_without_a_key_id_it_is_ignored(clock: Clock) -> None:
    token = jwt.encode({"sub": str(PEER), "exp": 1}, OLD[1], algorithm="HS512")
    assert ResumeTokens(clock, [OLD]).verify(token) is None


def test_a_token_is_for_one_user(clock: Clock) -> None:
    tokens, user = ResumeTokens(clock, [OLD]), UUID(int=9)
    token = tokens.issue(PEER, user).token
    assert tokens.verify(token, user) == PEER
    for other in (UUID(int=10), None):
        with pytest.raises(ResumeTokenError, match="another user"):
            tokens.verify(token, other)
    with pytest.raises(ResumeTokenError, match="another user"):
        tokens.verify(tokens.issue(PEER).token, user)


LATER = int(START) + 10

FORGED = {
    "nothing": "",
    "garbage": "garbage",
    "dots": "..",
    "another secret": forge({"sub": str(PEER), "exp": LATER}, key=("old", b"x" * 64)),
    "another key": forge({"sub": str(PEER), "exp": LATER}, key=("x", OLD[1])),
    "a key of no text": forge({"sub": str(PEER), "exp": LATER}).replace(".", "", 1),
    "no subject": forge({"exp": LATER}),
    "no expiry": forge({"sub": str(PEER)}),
    "expiry of text": forge({"sub": str(PEER), "exp": "soon"}),
    "subject of text": forge({"sub": "me", "exp": LATER}),
    "another algorithm": jwt.encode(
        {"sub": str(PEER), "exp": LATER},
        OLD[1],
        algorithm="HS256",
        headers={"kid": "old"},
    ),
    "no algorithm": jwt.encode(
        {"sub": str(PEER), "exp": LATER}, "", algorithm="none", headers={"kid": "old"}
    ),
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED)
def test_forged(token: str, clock: Clock) -> None:
    with pytest.raises(ResumeTokenError):
        ResumeTokens(clock, [OLD]).verify(token)


@given(st.text())
def test_any_text(text: str) -> None:
    with pytest.raises(ResumeTokenError):
        ResumeTokens(Clock(), [OLD]).verify(text)


@given(st.integers(0, 10_000), st.characters(exclude_categories=["Cs"]))
def test_one_character_changed(place: int, character: str) -> None:
    tokens = ResumeTokens(Clock(), [OLD])
    token = tokens.issue(PEER).token
    place %= len(token)
    changed = token[:place] + character + token[place + 1 :]
    try:
        verified = tokens.verify(changed)
    except ResumeTokenError:
        return
    # Base64 of 64 bytes has bits to spare at its end; or "kid" is gone.
    assert (
        verified is None
        or (verified == PEER and place == len(token) - 1)
        or (changed == token)
    )


@pytest.mark.parametrize(
    "keys",
    [[], [("a", b"short")], [("", b"x" * 64)], [OLD, OLD]],
    ids=["none", "short", "nameless", "twice"],
)
def test_keys_that_will_not_do(keys: list[tuple[str, bytes]], clock: Clock) -> None:
    with pytest.raises(LocalProtocolError):
        ResumeTokens(clock).use(keys)


def test_without_keys(clock: Clock) -> None:
    tokens = ResumeTokens(clock)
    with pytest.raises(LocalProtocolError, match="no key"):
        tokens.issue(PEER)
    with pytest.raises(ResumeTokenError, match="unknown key"):
        tokens.verify(ResumeTokens(clock, [OLD]).issue(PEER).token)


def test_secrets_are_not_shown(clock: Clock) -> None:
    tokens = ResumeTokens(clock, [OLD])
    assert "oooo" not in repr(vars(tokens))
