from __future__ import annotations

from pathlib import Path

import pytest

from relay.store.model import SigningKey
from relay.store.sql_store import open_store
from tailnet.errors import AlreadyExistsError
from tests.relay.store.stores import NOW, SECOND

OLD = SigningKey("1", "resume-token", b"\x00old\xff", NOW)
NEW = SigningKey("2", "resume-token", b"new", NOW + SECOND)
OTHER = SigningKey("3", "other", b"other", NOW)


async def test_keys_outlive_the_program(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with open_store(path, threads=False) as store:
        for key in (OLD, NEW, OTHER):
            await store.add_signing_key(key)
        deployment = await store.deployment_id()
    async with open_store(path, threads=False) as store:
        assert await store.list_signing_keys("resume-token") == [NEW, OLD]
        assert await store.list_signing_keys("other") == [OTHER]
        assert await store.list_signing_keys("nothing") == []
        assert await store.deployment_id() == deployment


async def test_key_is_added_once_and_forgotten(tmp_path: Path) -> None:
    async with open_store(tmp_path / "a.db", threads=False) as store:
        await store.add_signing_key(OLD)
        with pytest.raises(AlreadyExistsError, match="'1'"):
            await store.add_signing_key(OLD)
        await store.delete_signing_key(OLD.id)
        await store.delete_signing_key(OLD.id)
        assert await store.list_signing_keys("resume-token") == []
        await store.add_signing_key(OLD)
