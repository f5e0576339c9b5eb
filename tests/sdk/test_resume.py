from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, strategies as st

from tailnet.errors import RemoteProtocolError
from tailnet.sdk.resume import ResumeToken, decode_resume_token

# By hand: token "t"; refresh_in 43200 s; expires_at 1767225600 s.
TOKEN = "0a0174"
REFRESH_IN = "120408c0d102"
EXPIRES_AT = "1a060880f2d6ca06"
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_token() -> None:
    wire = bytes.fromhex(TOKEN + REFRESH_IN + EXPIRES_AT)
    assert decode_resume_token(wire) == ResumeToken("t", NEW_YEAR, 43_200.0)


@pytest.mark.parametrize("refresh_in", ["", "1200", "120b08ffffffffffffffffff01"])
def test_without_a_time_it_is_half_an_hour(refresh_in: str) -> None:
    wire = bytes.fromhex(TOKEN + refresh_in + EXPIRES_AT)
    assert decode_resume_token(wire).refresh_in == 1800


def test_without_an_end_it_is_of_no_use() -> None:
    assert decode_resume_token(b"").expires_at == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "wire",
    [
        "ff",
        TOKEN + "1a0a08ffffffffffffffff7f",  # the year 292 billion
        TOKEN + "120a08ffffffffffffffff7f",
        TOKEN + "1a0610ffffffff0f",  # nanoseconds of another second
    ],
)
def test_times_that_are_none(wire: str) -> None:
    with pytest.raises(RemoteProtocolError, match="broken resume token"):
        decode_resume_token(bytes.fromhex(wire))


@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_token_or_an_error(data: bytes) -> None:
    try:
        decode_resume_token(data)
    except RemoteProtocolError:
        pass
