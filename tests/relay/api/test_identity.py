from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from relay.api.identity import (
    Authenticator,
    Authorizer,
    OwnerAuthorizer,
    StoreAuthenticator,
)
from relay.store.model import AgentIdentity, NewAgent
from relay.store.sql_store import SqlStore
from tests.relay.store.stores import furnish, furnished


async def identity_of(store: SqlStore, agent: NewAgent) -> AgentIdentity:
    identity = await store.agent_identity(agent.agent.id)
    assert identity is not None
    return identity


async def test_authenticator_knows_what_the_store_knows(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        authenticator: Authenticator = StoreAuthenticator(store)
        agent_token = str(house.agent.token)
        assert await authenticator.authenticate_user(house.key.token) == house.owner
        identity = await authenticator.authenticate_agent(agent_token)
        assert identity is not None
        assert identity.agent == house.agent.agent
        # Neither secret opens the other door.
        assert await authenticator.authenticate_user(agent_token) is None
        assert await authenticator.authenticate_agent(house.key.token) is None
        await store.delete_api_key(house.key.key.id)
        await store.delete_agent(house.agent.agent.id)
        assert await authenticator.authenticate_user(house.key.token) is None
        assert await authenticator.authenticate_agent(agent_token) is None


async def test_owners_may_use_what_is_theirs(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, alice):
        bob = await furnish(store, "bob")
        authorizer: Authorizer = OwnerAuthorizer(store)
        for may in (authorizer.may_connect, authorizer.may_read):
            assert await may(alice.owner, await identity_of(store, alice.agent))
            assert not await may(alice.owner, await identity_of(store, bob.agent))
        assert await authorizer.may_watch(alice.owner, alice.owner.id)
        assert not await authorizer.may_watch(alice.owner, bob.owner.id)
        assert not await authorizer.may_debug(alice.owner)


async def test_admins_may_use_all_there_is(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, alice):
        admin = await store.create_user("root", is_admin=True)
        authorizer = OwnerAuthorizer(store)
        for may in (authorizer.may_connect, authorizer.may_read):
            assert await may(admin, await identity_of(store, alice.agent))
        assert await authorizer.may_watch(admin, alice.owner.id)
        assert await authorizer.may_watch(admin, admin.id)
        assert not await authorizer.may_watch(admin, uuid4())
        assert await authorizer.may_debug(admin)


async def test_sub_agents_belong_to_the_owner_too(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, alice):
        sub = await store.create_agent(
            alice.workspace.id, "sub", parent_id=alice.agent.agent.id
        )
        authorizer = OwnerAuthorizer(store)
        identity = await identity_of(store, sub)
        assert await authorizer.may_connect(alice.owner, identity)
        bob = await furnish(store, "bob")
        assert not await authorizer.may_connect(bob.owner, identity)
