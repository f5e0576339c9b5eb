"""Keys of resume tokens: kept, replaced, forgotten in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from relay.signing_keys import (
    RESUME_TOKEN,
    SECRET_LEN,
    SIGNING_TIME,
    load_signing_keys,
)
from relay.store.sql_store import open_store

START = datetime(2026, 1, 1, tzinfo=UTC)
LIFETIME = timedelta(days=1)


async def test_keys_outlive_a_restart_and_are_replaced(tmp_path: Path) -> None:
    async def load(now: datetime) -> list[str]:
        # A store each time: as after a restart.
        async with open_store(tmp_path / "tailnet.db") as store:
            keys = await load_signing_keys(
                store, RESUME_TOKEN, now, token_lifetime=LIFETIME
            )
            assert all(len(key.secret) == SECRET_LEN for key in keys)
            return [key.id for key in keys]

    first = await load(START)
    assert len(first) == 1
    assert await load(START + SIGNING_TIME - timedelta(seconds=1)) == first
    # The old key signs no more, but what it signed is still believed.
    both = await load(START + SIGNING_TIME)
    assert both[1:] == first
    assert await load(START + SIGNING_TIME + LIFETIME - timedelta(seconds=1)) == both
    assert await load(START + SIGNING_TIME + LIFETIME) == both[:1]


async def test_a_long_pause_forgets_the_old_key(tmp_path: Path) -> None:
    async with open_store(tmp_path / "tailnet.db") as store:
        [old] = await load_signing_keys(
            store, RESUME_TOKEN, START, token_lifetime=LIFETIME
        )
        [new] = await load_signing_keys(
            store,
            RESUME_TOKEN,
            START + 10 * SIGNING_TIME,
            token_lifetime=LIFETIME,
        )
        assert new.id != old.id
        assert await store.list_signing_keys(RESUME_TOKEN) == [new]
