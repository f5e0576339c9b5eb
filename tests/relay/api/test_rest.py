from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from relay.api.rest import REST_ROUTES
from relay.api.router import Router
from relay.pages.page import Response
from relay.store.model import Lifecycle, LifecycleState
from tests.relay.api.rig import (
    ACCESS_URL,
    DEPLOYMENT,
    VERSION,
    Rig,
    body_of,
    fetch,
    open_rig,
)

NIL = str(UUID(int=0))


async def get(rig: Rig, path: str, token: str | None = None) -> Response:
    """What Alice is answered, or whose token it is; nobody with an empty one."""
    return await fetch(
        Router(rig.context, REST_ROUTES),
        "GET",
        path,
        token=rig.token if token is None else token,
    )


async def post(rig: Rig, path: str, body: bytes = b"", token: str = "") -> Response:
    return await fetch(
        Router(rig.context, REST_ROUTES),
        "POST",
        path,
        token=token or rig.token,
        body=body,
    )


# -- without a token ---------------------------------------------------------


async def test_health_and_latency(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        health = await get(rig, "/healthz", "")
        assert (health.status, health.body) == (200, b"OK")
        latency = await get(rig, "/latency-check", "")
        assert latency.status == 200
        headers = dict(latency.headers)
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert headers["Timing-Allow-Origin"] == "*"


async def test_build_info(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await get(rig, "/api/v2/buildinfo", "")
        assert answer.status == 200
        assert dict(answer.headers)["X-Coder-Build-Version"] == VERSION
        info = body_of(answer)
        assert info["version"] == VERSION
        assert info["agent_api_version"] == "2.11"
        assert info["deployment_id"] == str(DEPLOYMENT)
        assert info["dashboard_url"] == ACCESS_URL
        assert info["telemetry"] is False
        assert info["workspace_proxy"] is False


async def test_first_user_and_appearance(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        assert (await get(rig, "/api/v2/users/first", "")).status == 200
        look = body_of(await get(rig, "/api/v2/appearance", ""))
        assert look["announcement_banners"] == []


async def test_no_first_user(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await rig.store.delete_workspace(rig.workspace.id)
        for user in await rig.store.list_users():
            await rig.store.delete_user(user.id)
        answer = await get(rig, "/api/v2/users/first", "")
        # coder login wants this header to believe a 404.
        assert dict(answer.headers)["X-Coder-Build-Version"] == VERSION
        assert answer.status == 404


NEEDS_USER = [
    ("GET", "/api/v2/deployment/ssh"),
    ("GET", "/api/v2/regions"),
    ("GET", "/api/v2/users/me"),
    ("POST", "/api/v2/users/me/keys"),
    ("GET", "/api/v2/users/me/workspace/dev"),
    ("GET", "/api/v2/workspaces"),
    ("GET", f"/api/v2/workspaces/{NIL}"),
    ("POST", f"/api/v2/workspaces/{NIL}/usage"),
    ("GET", f"/api/v2/templateversions/{NIL}"),
    ("GET", f"/api/v2/workspaceagents/{NIL}"),
    ("GET", f"/api/v2/workspaceagents/{NIL}/logs"),
]
NEEDS_AGENT = [
    ("GET", "/api/v2/workspaceagents/me/reinit"),
    ("GET", "/api/v2/workspaceagents/me/gitsshkey"),
    ("GET", "/api/v2/workspaceagents/me/external-auth"),
    ("GET", "/api/v2/workspaceagents/me/gitauth"),
    ("POST", "/api/v2/workspaceagents/me/log-source"),
]


@pytest.mark.parametrize(("method", "path"), NEEDS_USER + NEEDS_AGENT)
@pytest.mark.parametrize(
    "token", ["", "nonsense", "aaaaaaaaaa-bbbbbbbbbbbbbbbbbbbbbb", str(uuid4())]
)
async def test_without_a_good_token(
    tmp_path: Path, method: str, path: str, token: str
) -> None:
    async with open_rig(tmp_path) as rig:
        router = Router(rig.context, REST_ROUTES)
        answer = await fetch(router, method, path, token=token)
        assert answer.status == 401
        assert "message" in body_of(answer)


@pytest.mark.parametrize(("method", "path"), NEEDS_USER)
async def test_agent_tokens_are_not_for_users(
    tmp_path: Path, method: str, path: str
) -> None:
    async with open_rig(tmp_path) as rig:
        router = Router(rig.context, REST_ROUTES)
        answer = await fetch(router, method, path, token=str(rig.agent_token))
        assert answer.status == 401


@pytest.mark.parametrize(("method", "path"), NEEDS_AGENT)
async def test_user_tokens_are_not_for_agents(
    tmp_path: Path, method: str, path: str
) -> None:
    async with open_rig(tmp_path) as rig:
        router = Router(rig.context, REST_ROUTES)
        answer = await fetch(router, method, path, token=rig.token)
        assert answer.status == 401


def test_every_route_is_asked_without_a_token() -> None:
    """The lists above are whole."""
    known = {"/healthz", "/latency-check"} | {
        f"/api/v2/{name}" for name in ("buildinfo", "appearance", "users/first")
    }
    assert len(REST_ROUTES) == len(known) + len(NEEDS_USER) + len(NEEDS_AGENT)


# -- the deployment and users ------------------------------------------------


async def test_ssh_config(tmp_path: Path) -> None:
    async with open_rig(tmp_path, workspace_hostname_suffix="tail") as rig:
        assert body_of(await get(rig, "/api/v2/deployment/ssh")) == {
            "hostname_prefix": "coder.",
            "hostname_suffix": "tail",
            "ssh_config_options": {},
        }


async def test_regions(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        (region,) = body_of(await get(rig, "/api/v2/regions"))["regions"]
        assert region["id"] == str(DEPLOYMENT)
        assert region["name"] == "primary"
        assert region["path_app_url"] == ACCESS_URL
        assert region["healthy"] is True


async def test_users(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        me = body_of(await get(rig, "/api/v2/users/me"))
        assert me["id"] == str(rig.alice.id)
        assert me["username"] == "alice"
        assert me["status"] == "active"
        assert me["roles"] == []
        datetime.fromisoformat(me["created_at"])
        for name in ("alice", "ALICE", str(rig.alice.id)):
            assert body_of(await get(rig, f"/api/v2/users/{name}")) == me
        root = body_of(await get(rig, "/api/v2/users/me", rig.root_token))
        assert root["roles"] == [{"name": "owner", "display_name": "Owner"}]
        # An admin sees others.
        assert body_of(await get(rig, "/api/v2/users/alice", rig.root_token)) == me


@pytest.mark.parametrize("who", ["bob", "nobody", NIL])
async def test_other_users_do_not_exist(tmp_path: Path, who: str) -> None:
    async with open_rig(tmp_path) as rig:
        name = str(rig.bob.id) if who == NIL else who
        for path in (f"/api/v2/users/{name}", f"/api/v2/users/{name}/workspace/dev"):
            answer = await get(rig, path)
            assert answer.status == 400
            assert body_of(answer) == {
                "message": '"user" must be an existing uuid or username.',
                "detail": f'queried user="{name}"',
            }


async def test_login_gets_a_key_of_its_own(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await post(rig, "/api/v2/users/me/keys")
        assert answer.status == 201
        key = body_of(answer)["key"]
        assert key != rig.token
        user = await rig.store.authenticate_api_key(key)
        assert user is not None
        assert user.id == rig.alice.id


async def test_nobody_gets_a_key_of_somebody_else(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        before = len(await rig.store.list_api_keys())
        for name, token in (("bob", rig.token), ("alice", rig.root_token)):
            answer = await post(rig, f"/api/v2/users/{name}/keys", token=token)
            assert answer.status in {400, 404}
        assert len(await rig.store.list_api_keys()) == before


# -- workspaces --------------------------------------------------------------


async def test_workspace_as_the_command_wants_it(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await rig.store.save_connected(rig.agent.agent.id, datetime.now(UTC))
        await rig.store.save_lifecycle(
            rig.agent.agent.id, Lifecycle(LifecycleState.READY, datetime.now(UTC))
        )
        by_name = body_of(
            await get(rig, "/api/v2/users/me/workspace/dev?include_deleted=false")
        )
        by_id = body_of(await get(rig, f"/api/v2/workspaces/{rig.workspace.id}"))
        assert by_name == by_id
        assert by_name["id"] == str(rig.workspace.id)
        assert by_name["name"] == "dev"
        assert by_name["owner_name"] == "alice"
        build = by_name["latest_build"]
        assert build["transition"] == "start"
        assert build["status"] == "running"
        assert build["job"]["status"] == "succeeded"
        datetime.fromisoformat(build["job"]["completed_at"])
        ((agent,),) = [resource["agents"] for resource in build["resources"]]
        assert agent["id"] == str(rig.agent.agent.id)
        assert agent["name"] == "main"
        assert agent["status"] == "connected"
        assert agent["lifecycle_state"] == "ready"
        assert agent["health"] == {"healthy": True}
        assert body_of(
            await get(rig, f"/api/v2/workspaceagents/{rig.agent.agent.id}")
        ) == agent  # fmt: skip
        # What the workspace names has to be there.
        version = build["template_version_id"]
        answer = await get(rig, f"/api/v2/templateversions/{version}")
        assert answer.status == 200


async def test_an_agent_that_is_gone_makes_the_workspace_unhealthy(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig:
        then = datetime.now(UTC) - timedelta(hours=1)
        await rig.store.save_connected(rig.agent.agent.id, then)
        workspace = body_of(await get(rig, f"/api/v2/workspaces/{rig.workspace.id}"))
        assert workspace["health"] == {
            "healthy": False,
            "failing_agents": [str(rig.agent.agent.id)],
        }


async def test_admins_see_all_workspaces(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        for path in (
            f"/api/v2/workspaces/{rig.workspace.id}",
            "/api/v2/users/alice/workspace/dev",
            f"/api/v2/workspaceagents/{rig.agent.agent.id}",
        ):
            assert (await get(rig, path, rig.root_token)).status == 200


async def test_what_is_not_there_and_what_is_not_yours_look_the_same(
    tmp_path: Path,
) -> None:
    async with open_rig(tmp_path) as rig:
        mine, none = rig.workspace.id, uuid4()
        for theirs, nobodys in (
            (f"/api/v2/workspaces/{mine}", f"/api/v2/workspaces/{none}"),
            (
                f"/api/v2/workspaceagents/{rig.agent.agent.id}",
                f"/api/v2/workspaceagents/{none}",
            ),
        ):
            denied = await get(rig, theirs, rig.bob_token)
            assert denied.status == 404
            assert denied.body == (await get(rig, nobodys, rig.bob_token)).body
        usage = await post(rig, f"/api/v2/workspaces/{mine}/usage", token=rig.bob_token)
        assert usage.status == 404
        assert (await get(rig, "/api/v2/users/me/workspace/none")).status == 404
        assert (await get(rig, f"/api/v2/templateversions/{none}")).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/api/v2/workspaces/nonsense",
        "/api/v2/workspaceagents/nonsense",
        "/api/v2/templateversions/nonsense",
    ],
)
async def test_bad_ids(tmp_path: Path, path: str) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await get(rig, path)
        assert answer.status == 400
        assert body_of(answer) == {
            "message": 'Invalid UUID "nonsense".',
            "detail": "invalid UUID length: 8",
        }


async def test_bad_include_deleted(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        path = "/api/v2/users/me/workspace/dev?include_deleted=maybe"
        answer = await get(rig, path)
        assert answer.status == 400
        assert body_of(answer)["validations"] == [
            {"field": "include_deleted", "detail": "Must be a valid boolean"}
        ]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["dev", "other"]),
        ("owner:me", ["dev", "other"]),
        ("owner:me name:DE", ["dev"]),
        ("owner:bob", []),
        ("owner:nobody", []),
        ("alice/oth", ["other"]),
        ('name:"dev"', ["dev"]),
        ("x", []),
    ],
)
async def test_workspaces(tmp_path: Path, query: str, names: list[str]) -> None:
    async with open_rig(tmp_path) as rig:
        await rig.store.create_workspace(rig.alice.id, "other")
        await rig.store.create_workspace(rig.bob.id, "bobs")
        quoted = query.replace(" ", "%20")
        listed = body_of(await get(rig, f"/api/v2/workspaces?q={quoted}"))
        assert [workspace["name"] for workspace in listed["workspaces"]] == names
        assert listed["count"] == len(names)


@pytest.mark.parametrize("query", ["status:running", 'name:"open'])
async def test_bad_search(tmp_path: Path, query: str) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await get(rig, f"/api/v2/workspaces?q={query}")
        assert answer.status == 400
        assert body_of(answer)["validations"][0]["field"] == "q"


async def test_admins_list_everybodys_workspaces(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        await rig.store.create_workspace(rig.bob.id, "bobs")
        listed = body_of(await get(rig, "/api/v2/workspaces", rig.root_token))
        assert [w["name"] for w in listed["workspaces"]] == ["dev", "bobs"]


@pytest.mark.parametrize(
    ("usage", "status", "field"),
    [
        (None, 204, ""),
        ({}, 204, ""),
        ({"agent_id": NIL, "app_name": ""}, 204, ""),
        ({"agent_id": "AGENT", "app_name": "ssh"}, 204, ""),
        ({"app_name": "ssh"}, 400, "agent_id"),
        ({"agent_id": "AGENT"}, 400, "app_name"),
        ({"agent_id": "AGENT", "app_name": "irc"}, 400, "app_name"),
        ({"agent_id": "AGENT", "app_name": ["ssh"]}, 400, "app_name"),
        ({"agent_id": "nonsense", "app_name": "ssh"}, 400, "agent_id"),
        ({"agent_id": 7, "app_name": "ssh"}, 400, "agent_id"),
        ({"agent_id": str(uuid4()), "app_name": "ssh"}, 404, ""),
    ],
)
async def test_usage(
    tmp_path: Path, usage: dict[str, object] | None, status: int, field: str
) -> None:
    async with open_rig(tmp_path) as rig:
        text = "" if usage is None else json.dumps(usage)
        body = text.replace("AGENT", str(rig.agent.agent.id)).encode()
        answer = await post(rig, f"/api/v2/workspaces/{rig.workspace.id}/usage", body)
        assert answer.status == status
        if field:
            assert body_of(answer)["validations"][0]["field"] == field
        if status == 204:
            assert answer.body == b""


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff", b"[" * 60_000])
async def test_bad_usage_body(tmp_path: Path, body: bytes) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await post(rig, f"/api/v2/workspaces/{rig.workspace.id}/usage", body)
        assert answer.status == 400
        assert body_of(answer)["message"] == "Request body must be valid JSON."


# -- for agents --------------------------------------------------------------


async def test_reinit_is_a_conflict(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        path = "/api/v2/workspaceagents/me/reinit?wait=true"
        answer = await get(rig, path, str(rig.agent_token))
        assert answer.status == 409


async def test_what_agents_do_not_get(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        base, token = "/api/v2/workspaceagents/me", str(rig.agent_token)
        assert (await get(rig, f"{base}/gitsshkey", token)).status == 404
        for name in ("external-auth", "gitauth"):
            for query in ("", "?id=a&match=b"):
                answer = await get(rig, f"{base}/{name}{query}", token)
                assert answer.status == 400
            answer = await get(rig, f"{base}/{name}?id=github", token)
            assert answer.status == 404
            assert '"github"' in body_of(answer)["message"]


async def test_log_source(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        path, token = "/api/v2/workspaceagents/me/log-source", str(rig.agent_token)
        source = {"id": str(uuid4()), "display_name": "Script", "icon": "/i.png"}
        answer = await post(rig, path, json.dumps(source).encode(), token)
        assert answer.status == 201
        echo = body_of(answer)
        assert {name: echo[name] for name in source} == source
        assert echo["workspace_agent_id"] == str(rig.agent.agent.id)
        for body in (b"", b"{}", b'{"id":"nonsense"}', b"[]", b"\xff"):
            assert (await post(rig, path, body, token)).status == 400
