from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from relay.api.agent_service import AGENT_SERVICE, agent_handlers
from relay.api.sub_agents import MAX_APPS, NO_TOKEN
from relay.store.model import AppHealth
from tailnet.control.proto import agent_pb2 as pb
from tailnet.control.server import Handler
from tests.relay.api.rig import Rig, ask, open_rig, refusal

App = pb.CreateSubAgentRequest.App


def handlers(rig: Rig) -> Mapping[str, Handler]:
    return {
        name.removeprefix(AGENT_SERVICE): handler
        for name, handler in agent_handlers(rig.agent, rig.context).items()
    }


async def create(
    rig: Rig, name: str = "container", **fields: object
) -> pb.CreateSubAgentResponse:
    request = pb.CreateSubAgentRequest(name=name, **fields)  # type: ignore[arg-type]
    return await ask(
        handlers(rig)["CreateSubAgent"], request, pb.CreateSubAgentResponse
    )


async def listed(rig: Rig) -> dict[str, pb.SubAgent]:
    answer = await ask(handlers(rig)["ListSubAgents"], b"", pb.ListSubAgentsResponse)
    return {agent.name: agent for agent in answer.agents}


async def test_a_sub_agent_has_an_identity_of_its_own(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await create(
            rig,
            directory="/workspaces/x",
            architecture="arm64",
            operating_system="linux",
            display_apps=[0, 4],
        )
        assert not answer.app_creation_errors
        assert answer.agent.name == "container"
        token = UUID(bytes=answer.agent.auth_token)
        identity = await rig.store.authenticate_agent(str(token))
        assert identity is not None
        agent = identity.agent
        assert agent.id.bytes == answer.agent.id
        assert agent.id != rig.agent.agent.id
        assert agent.parent_id == rig.agent.agent.id
        assert identity.workspace == rig.workspace
        assert (agent.directory, agent.architecture) == ("/workspaces/x", "arm64")
        assert agent.operating_system == "linux"
        assert list(agent.display_apps) == ["vscode", "port_forwarding_helper"]


async def test_too_many_apps(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        request = pb.CreateSubAgentRequest(name="x", apps=[App()] * (MAX_APPS + 1))
        error = await refusal(handlers(rig)["CreateSubAgent"], request)
        assert error.text == "101 apps, the limit is 100"
        assert await listed(rig) == {}
        answer = await create(rig, apps=[App()] * MAX_APPS)
        assert len(answer.app_creation_errors) == MAX_APPS


async def test_list_has_no_tokens(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        assert await listed(rig) == {}
        one, two = await create(rig, "one"), await create(rig, "two")
        agents = await listed(rig)
        assert {name: agent.id for name, agent in agents.items()} == {
            "one": one.agent.id,
            "two": two.agent.id,
        }
        assert {agent.auth_token for agent in agents.values()} == {NO_TOKEN}
        assert await rig.store.authenticate_agent(str(UUID(bytes=NO_TOKEN))) is None


async def test_delete(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await create(rig)
        sub = UUID(bytes=answer.agent.id)
        request = pb.DeleteSubAgentRequest(id=sub.bytes)
        handler = handlers(rig)["DeleteSubAgent"]
        await ask(handler, request, pb.DeleteSubAgentResponse)
        assert await rig.store.get_agent(sub) is None
        token = UUID(bytes=answer.agent.auth_token)
        assert await rig.store.authenticate_agent(str(token)) is None
        # Its connections end at once, and those who see it are told.
        assert rig.coordinator.removed == [(sub, "the agent was deleted")]
        error = await refusal(handler, request)
        assert error.text == f"this agent has no sub-agent {sub}"


async def test_only_ones_own_can_be_deleted_or_asked_for_again(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig:
        other = await rig.store.create_agent(rig.workspace.id, "other")
        others = await rig.store.create_agent(
            rig.workspace.id, "others", parent_id=other.agent.id
        )
        for victim in (rig.agent.agent.id, other.agent.id, others.agent.id, uuid4()):
            for method, request in (
                ("DeleteSubAgent", pb.DeleteSubAgentRequest(id=victim.bytes)),
                ("CreateSubAgent", pb.CreateSubAgentRequest(id=victim.bytes)),
            ):
                error = await refusal(handlers(rig)[method], request)
                assert error.text == f"this agent has no sub-agent {victim}"
        assert await rig.store.get_agent(others.agent.id) is not None
        assert await rig.store.authenticate_agent(str(others.token)) is not None
        assert rig.coordinator.removed == []


async def test_asking_again_gives_a_new_token(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        first = await create(rig)
        again = await create(rig, id=first.agent.id)
        assert (again.agent.id, again.agent.name) == (first.agent.id, "container")
        assert again.agent.auth_token != first.agent.auth_token
        old, new = [
            await rig.store.authenticate_agent(str(UUID(bytes=a.agent.auth_token)))
            for a in (first, again)
        ]
        assert old is None
        assert new is not None


async def test_a_name_that_is_taken(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await create(rig)
        for name in ("container", "MAIN"):
            error = await refusal(
                handlers(rig)["CreateSubAgent"], pb.CreateSubAgentRequest(name=name)
            )
            # Agents look for the first three words, and try another name.
            assert error.text.startswith(f'workspace agent name "{name}"')


@pytest.mark.parametrize(
    ("request_message", "text"),
    [
        (pb.CreateSubAgentRequest(), "name: agent name cannot be empty"),
        (pb.CreateSubAgentRequest(name="-x"), "'-x' is no name for"),
        (pb.CreateSubAgentRequest(name="a b"), "is no name for"),
        (
            pb.CreateSubAgentRequest(name="x", display_apps=[0, 5]),  # type: ignore[list-item]
            "display_apps[1]: 5 is not a valid display app",
        ),
        (pb.CreateSubAgentRequest(name="x", id=b"1"), "id: invalid UUID (got 1 bytes)"),
    ],
)
async def test_bad_sub_agent(
    tmp_path: Path, request_message: pb.CreateSubAgentRequest, text: str
) -> None:
    async with open_rig(tmp_path) as rig:
        error = await refusal(handlers(rig)["CreateSubAgent"], request_message)
        assert text in error.text
        assert await listed(rig) == {}


async def test_bad_delete(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        error = await refusal(handlers(rig)["DeleteSubAgent"], b"")
        assert error.text == "id: invalid UUID (got 0 bytes)"


async def test_a_sub_agent_makes_no_sub_agents(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await create(rig)
        identity = await rig.store.agent_identity(UUID(bytes=answer.agent.id))
        assert identity is not None
        handler = agent_handlers(identity, rig.context)[
            AGENT_SERVICE + "CreateSubAgent"
        ]
        error = await refusal(handler, pb.CreateSubAgentRequest(name="deeper"))
        assert "sub-agent" in error.text


async def test_apps(tmp_path: Path) -> None:
    """Good ones are made, and each bad one is told of."""
    async with open_rig(tmp_path) as rig:
        good = App(
            slug="web",
            command="run",
            display_name="Web",
            external=True,
            group="g",
            healthcheck=App.Healthcheck(interval=1, threshold=2, url="http://h"),
            hidden=True,
            icon="/i.png",
            open_in=1,  # type: ignore[arg-type]
            order=3,
            share=2,  # type: ignore[arg-type]
            subdomain=True,
            url="http://u",
        )
        answer = await create(
            rig,
            apps=[
                good,
                App(slug="least"),
                App(),
                App(slug="Bad_Slug"),
                App(slug="web"),
                App(slug="s", share=9),  # type: ignore[arg-type]
                App(slug="o", open_in=9),  # type: ignore[arg-type]
                App(slug="h", healthcheck=App.Healthcheck(interval=-1)),
            ],
        )
        assert [
            (error.index, error.field, error.error)
            for error in answer.app_creation_errors
        ] == [
            (2, "slug", "must not be empty"),
            (3, "slug", '"Bad_Slug" does not match regex "^[a-z0-9](-?[a-z0-9])*$"'),
            (4, "slug", '"web" is already in use'),
            (5, "share", '"9" is not a valid app sharing level'),
            (6, "open_in", '"9" is not an open in setting'),
            (7, "healthcheck", "interval and threshold must not be negative"),
        ]
        least, web = await rig.store.list_apps(UUID(bytes=answer.agent.id))
        assert least.health is AppHealth.DISABLED
        assert least.settings.share == "owner"
        assert least.settings.open_in == "slim-window"
        assert web.health is AppHealth.INITIALIZING
        settings = web.settings
        assert (settings.share, settings.open_in) == ("public", "tab")
        assert (settings.command, settings.display_name) == ("run", "Web")
        assert (settings.group, settings.order) == ("g", 3)
        assert settings.external
        assert settings.hidden
        assert settings.subdomain
        assert (settings.url, settings.icon) == ("http://u", "/i.png")
        assert settings.healthcheck_url == "http://h"
        assert settings.healthcheck_interval == 1
        assert settings.healthcheck_threshold == 2
