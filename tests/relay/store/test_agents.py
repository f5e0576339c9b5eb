from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from relay.store.agents import MAX_APPS, MAX_SUB_AGENTS, MAX_TEXT_LEN
from relay.store.model import AppHealth, NewApp, WorkspaceAgents
from tailnet.errors import AlreadyExistsError, InvalidRecordError, NotFoundError
from tests.relay.store.stores import NOW, furnish, furnished

WANTED = UUID("11111111-2222-4333-8444-555555555555")
NIL = UUID(int=0)


async def test_workspace_comes_back_by_id_and_name(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        made = await store.create_workspace(house.owner.id, "Two", workspace_id=WANTED)
        assert (made.id, made.owner_name, made.created_at) == (WANTED, "alice", NOW)
        assert await store.get_workspace(WANTED) == made
        assert await store.find_workspace("ALICE", "two") == made
        assert await store.find_workspace("alice", "three") is None
        assert await store.find_workspace("bob", "two") is None
        assert await store.get_workspace(uuid4()) is None


async def test_workspaces_that_cannot_be_made(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        owner = house.owner.id
        with pytest.raises(AlreadyExistsError, match="alice/DEV already"):
            await store.create_workspace(owner, "DEV")
        with pytest.raises(AlreadyExistsError, match=str(house.workspace.id)):
            await store.create_workspace(owner, "x", workspace_id=house.workspace.id)
        with pytest.raises(InvalidRecordError, match="nil"):
            await store.create_workspace(owner, "x", workspace_id=NIL)
        with pytest.raises(InvalidRecordError):
            await store.create_workspace(owner, "x/y")
        with pytest.raises(NotFoundError):
            await store.create_workspace(uuid4(), "x")
        assert len(await store.list_workspaces()) == 1


async def test_two_owners_may_use_the_same_names(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, alice):
        bob = await furnish(store, "bob")
        assert await store.list_workspaces(bob.owner.id) == [bob.workspace]
        assert await store.list_workspaces() == [alice.workspace, bob.workspace]
        assert await store.find_agent("bob", "dev", "main") == bob.agent.agent
        assert await store.find_agent("Alice", "Dev", "Main") == alice.agent.agent


async def test_workspaces_of_an_owner_with_their_agents(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        await furnish(store, "bob")
        empty = await store.create_workspace(house.owner.id, "Attic")
        extra = await store.create_agent(house.workspace.id, "extra")
        assert await store.workspaces_of(house.owner.id) == [
            WorkspaceAgents(empty, ()),
            WorkspaceAgents(house.workspace, [extra.agent, house.agent.agent]),
        ]
        assert await store.workspaces_of(uuid4()) == []


async def test_agent_comes_back(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        token = uuid4()
        made = await store.create_agent(
            house.workspace.id,
            "Two",
            agent_id=WANTED,
            token=token,
            directory="/home/alice",
            architecture="arm64",
            operating_system="linux",
            display_apps=["vscode", "web_terminal"],
        )
        agent = made.agent
        assert (agent.id, made.token) == (WANTED, token)
        assert (agent.directory, agent.architecture) == ("/home/alice", "arm64")
        assert agent.operating_system == "linux"
        assert agent.display_apps == ("vscode", "web_terminal")
        assert agent.created_at == NOW
        assert await store.get_agent(WANTED) == agent
        assert await store.find_agent("alice", "dev", "TWO") == agent
        assert await store.list_agents(house.workspace.id) == [
            house.agent.agent,
            agent,
        ]
        assert await store.list_agents() == [house.agent.agent, agent]
        assert await store.list_agents(uuid4()) == []
        assert await store.get_agent(uuid4()) is None


async def test_agents_that_cannot_be_made(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        where, first = house.workspace.id, house.agent
        with pytest.raises(AlreadyExistsError, match="alice/dev/MAIN already"):
            await store.create_agent(where, "MAIN")
        with pytest.raises(AlreadyExistsError, match=str(first.agent.id)):
            await store.create_agent(where, "x", agent_id=first.agent.id)
        with pytest.raises(AlreadyExistsError, match="token") as exc:
            await store.create_agent(where, "x", token=first.token)
        assert str(first.token) not in str(exc.value)
        with pytest.raises(InvalidRecordError, match="agent id may not be the nil"):
            await store.create_agent(where, "x", agent_id=NIL)
        with pytest.raises(InvalidRecordError, match="token may not be the nil"):
            await store.create_agent(where, "x", token=NIL)
        with pytest.raises(InvalidRecordError):
            await store.create_agent(where, "x_y")
        with pytest.raises(InvalidRecordError, match=f"the limit is {MAX_TEXT_LEN}"):
            await store.create_agent(where, "x", directory="/" * (MAX_TEXT_LEN + 1))
        with pytest.raises(NotFoundError):
            await store.create_agent(uuid4(), "x")
        with pytest.raises(NotFoundError):
            await store.create_agent(where, "x", parent_id=uuid4())
        assert len(await store.list_agents()) == 1


async def test_sub_agents(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        where, parent = house.workspace.id, house.agent.agent.id
        sub = await store.create_agent(where, "sub", parent_id=parent)
        assert sub.agent.parent_id == parent
        assert await store.list_sub_agents(parent) == [sub.agent]
        assert await store.list_sub_agents(sub.agent.id) == []
        identity = await store.authenticate_agent(str(sub.token))
        assert identity is not None
        assert identity.agent == sub.agent
        with pytest.raises(InvalidRecordError, match="have none of their own"):
            await store.create_agent(where, "x", parent_id=sub.agent.id)
        bob = await furnish(store, "bob")
        with pytest.raises(InvalidRecordError, match="another workspace"):
            await store.create_agent(bob.workspace.id, "x", parent_id=parent)


async def test_sub_agents_are_bounded(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        where, parent = house.workspace.id, house.agent.agent.id
        for number in range(MAX_SUB_AGENTS):
            await store.create_agent(where, f"sub-{number}", parent_id=parent)
        with pytest.raises(InvalidRecordError, match=f"{MAX_SUB_AGENTS} sub-agents"):
            await store.create_agent(where, "one-more", parent_id=parent)


async def test_who_goes_with_whom(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        where, parent = house.workspace.id, house.agent.agent.id
        app = NewApp("app")
        sub = await store.create_agent(where, "sub", parent_id=parent, apps=[app])
        other = await store.create_agent(where, "other")
        await store.delete_agent(parent)
        assert await store.list_agents() == [other.agent]
        for token in (house.agent.token, sub.token):
            assert await store.authenticate_agent(str(token)) is None
        assert await store.agent_reports(sub.agent.id) is None
        with pytest.raises(NotFoundError, match=str(parent)):
            await store.delete_agent(parent)
        # Its name and id are free again.
        await store.create_agent(where, "main", agent_id=parent)
        await store.delete_workspace(where)
        assert await store.list_agents() == []
        with pytest.raises(NotFoundError, match=str(where)):
            await store.delete_workspace(where)


async def test_identity(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        await furnish(store, "bob")
        for text in (str(house.agent.token), str(house.agent.token).upper()):
            identity = await store.authenticate_agent(text)
            assert identity is not None
            assert identity.agent == house.agent.agent
            assert identity.workspace == house.workspace
            assert identity.owner == house.owner
        assert await store.agent_identity(house.agent.agent.id) == identity
        assert await store.agent_identity(uuid4()) is None
        for wrong in ("", str(uuid4()), house.agent.token.hex, house.key.token):
            assert await store.authenticate_agent(wrong) is None


async def test_another_token(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        renewed = await store.renew_agent_token(house.agent.agent.id)
        assert renewed.agent == house.agent.agent
        assert await store.authenticate_agent(str(house.agent.token)) is None
        assert await store.authenticate_agent(str(renewed.token)) is not None
        with pytest.raises(NotFoundError):
            await store.renew_agent_token(uuid4())


async def test_apps(tmp_path: Path) -> None:
    async with furnished(tmp_path) as (store, house):
        apps = [
            NewApp("web", url="http://localhost", healthcheck_url="http://localhost/h"),
            NewApp("term", command="top", order=3, share="public"),
        ]
        made = await store.create_agent(house.workspace.id, "x", apps=apps)
        reports = await store.agent_reports(made.agent.id)
        assert reports is not None
        assert [app.settings for app in reports.apps] == [apps[1], apps[0]]
        assert {app.settings.slug: app.health for app in reports.apps} == {
            "web": AppHealth.INITIALIZING,
            "term": AppHealth.DISABLED,
        }


@pytest.mark.parametrize(
    "apps",
    [
        [NewApp("twice"), NewApp("twice")],
        [NewApp("")],
        [NewApp("x" * 65)],
        [NewApp("x", command="x" * 20_000)],
        [NewApp(f"x{number}") for number in range(MAX_APPS + 1)],
    ],
    ids=["same-slug", "no-slug", "long-slug", "large", "many"],
)
async def test_apps_that_cannot_be_made(tmp_path: Path, apps: list[NewApp]) -> None:
    async with furnished(tmp_path) as (store, house):
        with pytest.raises(InvalidRecordError):
            await store.create_agent(house.workspace.id, "x", apps=apps)
        assert await store.find_agent("alice", "dev", "x") is None
