from __future__ import annotations

import hashlib
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from relay.store.tokens import (
    agent_token_hash,
    generate_api_token,
    is_same_hash,
    parse_agent_token,
    parse_api_token,
    secret_hash,
    split_api_token,
)
from tailnet.errors import InvalidRecordError

KEY_ID, SECRET = "0123456789", "abcdefghijklmnopqrstuv"
TOKEN = UUID("0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f0")


def test_made_tokens_have_coders_shape_and_differ() -> None:
    tokens = {generate_api_token() for _ in range(100)}
    assert len(tokens) == 100
    for token in tokens:
        key_id, secret = parse_api_token(token)
        assert (len(key_id), len(secret)) == (10, 22)
        assert token == f"{key_id}-{secret}"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "-",
        f"{KEY_ID}{SECRET}",
        f"{KEY_ID}-{SECRET}x",
        f"{KEY_ID}x-{SECRET}",
        f"{KEY_ID}-{SECRET}\n",
        f" {KEY_ID}-{SECRET}",
        f"{KEY_ID}-{SECRET[:-1]}-",
        f"{KEY_ID}-{SECRET[:-1]}ü",
        str(TOKEN),
    ],
)
def test_what_is_no_api_key(token: str) -> None:
    assert split_api_token(token) is None
    with pytest.raises(InvalidRecordError, match="10 letters and digits") as exc:
        parse_api_token(token)
    assert SECRET[:-1] not in str(exc.value)


def test_agent_tokens_in_either_case_are_the_same() -> None:
    assert parse_agent_token(str(TOKEN)) == TOKEN
    assert parse_agent_token(str(TOKEN).upper()) == TOKEN


@pytest.mark.parametrize(
    "token",
    [
        "",
        TOKEN.hex,
        f"{{{TOKEN}}}",
        f"urn:uuid:{TOKEN}",
        f"{TOKEN}\n",
        f"٣{TOKEN}"[:36],
    ],
)
def test_what_is_no_agent_token(token: str) -> None:
    assert parse_agent_token(token) is None


@given(st.text())
def test_any_text_is_a_token_or_not(text: str) -> None:
    assert split_api_token(text) is None
    assert parse_agent_token(text) is None


def test_hashes_are_sha256_of_the_text() -> None:
    # Coder keeps the secret half of an API key likewise.
    assert secret_hash(SECRET) == hashlib.sha256(SECRET.encode()).digest()
    assert agent_token_hash(TOKEN) == hashlib.sha256(str(TOKEN).encode()).digest()


def test_comparing() -> None:
    hash_ = secret_hash(SECRET)
    assert is_same_hash(hash_, secret_hash(SECRET))
    assert not is_same_hash(hash_, secret_hash(SECRET + "x"))
    assert not is_same_hash(None, hash_)
    assert not is_same_hash(None, bytes(32))
