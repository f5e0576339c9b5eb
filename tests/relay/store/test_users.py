from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from relay.store.sql_store import open_store
from tailnet.errors import (
    AlreadyExistsError,
    InUseError,
    InvalidRecordError,
    NotFoundError,
)
from tests.relay.store.stores import NOW, SECOND, Clock, furnish, furnished

TOKEN = "ABCDEFGHIJ-abcdefghijklmnopqrstuv"


async def test_user_comes_back_by_id_and_name(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, _):
        made = await store.create_user("Bob-7", is_admin=True)
        assert (made.username, made.is_admin, made.created_at) == ("Bob-7", True, NOW)
        assert await store.get_user(made.id) == made
        for name in ("Bob-7", "bob-7", "BOB-7"):
            assert await store.find_user(name) == made
        assert await store.get_user(uuid4()) is None
        assert await store.find_user("bob") is None
        assert [user.username for user in await store.list_users()] == [
            "alice",
            "Bob-7",
        ]


async def test_names_are_unique_without_case_and_follow_the_rule(
    tmp_path: Path,
) -> None:
    async with furnished(tmp_path) as (store, _):
        with pytest.raises(AlreadyExistsError, match="a user 'alice' already"):
            await store.create_user("ALICE")
        with pytest.raises(InvalidRecordError):
            await store.create_user("no good")
        for name in ("me", "Me"):
            with pytest.raises(InvalidRecordError, match="reserved"):
                await store.create_user(name)
        assert len(await store.list_users()) == 1


async def test_user_with_workspaces_stays(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        with pytest.raises(InUseError, match="owns workspaces, such as 'dev'"):
            await store.delete_user(house.owner.id)
        assert await store.authenticate_api_key(house.key.token) == house.owner
        await store.delete_workspace(house.workspace.id)
        await store.delete_user(house.owner.id)
        assert await store.list_users() == []
        assert await store.list_api_keys() == []
        assert await store.authenticate_api_key(house.key.token) is None
        with pytest.raises(NotFoundError, match=str(house.owner.id)):
            await store.delete_user(house.owner.id)


async def test_api_key_is_known_by_its_token_alone(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        bob = await furnish(store, "bob")
        assert await store.authenticate_api_key(house.key.token) == house.owner
        assert await store.authenticate_api_key(bob.key.token) == bob.owner
        key_id, secret = house.key.token.split("-")
        other_id, other_secret = bob.key.token.split("-")
        for wrong in (
            f"{key_id}-{other_secret}",
            f"{other_id}-{secret}",
            f"{key_id}-{secret[:-1]}",
            f"{key_id.swapcase()}-{secret}",
            f"0000000000-{secret}",
            house.key.token + "\n",
            "",
            "\ud800",
        ):
            assert await store.authenticate_api_key(wrong) is None


async def test_secret_is_nowhere_in_the_files(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        await store.create_api_key(house.owner.id, token=TOKEN)
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert TOKEN[:10].encode() in content
    assert TOKEN[11:].encode() not in content
    for form in (str(house.agent.token), house.agent.token.hex):
        assert form.encode() not in content
    assert house.agent.token.bytes not in content


async def test_wanted_token(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        made = await store.create_api_key(house.owner.id, token=TOKEN, name="laptop")
        assert made.token == TOKEN
        assert (made.key.id, made.key.name) == ("ABCDEFGHIJ", "laptop")
        assert await store.authenticate_api_key(TOKEN) == house.owner
        with pytest.raises(AlreadyExistsError, match="ABCDEFGHIJ"):
            await store.create_api_key(house.owner.id, token=TOKEN[:-1] + "w")
        with pytest.raises(InvalidRecordError, match="10 letters"):
            await store.create_api_key(house.owner.id, token="secret")
        with pytest.raises(InvalidRecordError, match="64 characters"):
            await store.create_api_key(house.owner.id, name="x" * 65)
        with pytest.raises(NotFoundError):
            await store.create_api_key(uuid4())
        assert len(await store.list_api_keys()) == 2


async def test_api_key_expires(tmp_path: Path) -> None:
    clock = Clock()
    async with open_store(tmp_path / "a.db", threads=False, now=clock) as store:
        house = await furnish(store)
        until = NOW + timedelta(hours=1)
        made = await store.create_api_key(house.owner.id, expires_at=until)
        assert made.key.expires_at == until
        clock.now = until - SECOND / 1_000_000
        assert await store.authenticate_api_key(made.token) == house.owner
        clock.now = until
        assert await store.authenticate_api_key(made.token) is None
        assert await store.authenticate_api_key(house.key.token) == house.owner
        # It is still listed, so that its owner sees why it does not work.
        assert made.key in await store.list_api_keys(house.owner.id)


async def test_api_keys_are_listed_and_revoked(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        bob = await furnish(store, "bob")
        assert await store.list_api_keys(bob.owner.id) == [bob.key.key]
        assert bob.key.key.username == "bob"
        assert len(await store.list_api_keys()) == 2
        await store.delete_api_key(bob.key.key.id)
        assert await store.list_api_keys() == [house.key.key]
        assert await store.authenticate_api_key(bob.key.token) is None
        with pytest.raises(NotFoundError, match=bob.key.key.id):
            await store.delete_api_key(bob.key.key.id)
