"""Which endpoint answers, and who may ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.api.answers import json_answer
from relay.api.context import ApiError, ApiRequest
from relay.api.router import Auth, Route, Router, session_token
from relay.front.application import Takeover
from relay.pages.page import Request, Response
from relay.store.model import User
from tailnet.errors import StoreUnavailableError
from tests.relay.api.rig import VERSION, Rig, body_of, fetch, open_rig


async def show(request: ApiRequest) -> Response:
    return json_answer(
        200,
        {
            "params": dict(request.params),
            "user": request.user and request.user.username,
            "agent": request.agent and request.agent.agent.name,
            "q": request.query("q"),
        },
    )


async def down(request: ApiRequest) -> Response:
    raise StoreUnavailableError("disk full")


async def refuse(request: ApiRequest) -> Response:
    raise ApiError(json_answer(418, "teapot"))


ROUTES = (
    Route("GET", "/api/v2/things/{thing}", show),
    Route("POST", "/api/v2/things/{thing}", show),
    Route("GET", "/api/v2/things/me", show, Auth.AGENT),
    Route("GET", "/api/v2/open", show, Auth.NONE),
    Route("GET", "/api/v2/admin", show, Auth.ADMIN),
    Route("GET", "/api/v2/down", down, Auth.NONE),
    Route("GET", "/api/v2/refuse", refuse, Auth.NONE),
)


def router(rig: Rig) -> Router:
    return Router(rig.context, ROUTES)


async def test_paths_and_parameters(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        got = await fetch(router(rig), "GET", "/api/v2/things/a?q=1", token=rig.token)
        assert body_of(got) == {
            "params": {"thing": "a"}, "user": "alice", "agent": None, "q": "1",
        }  # fmt: skip
        assert dict(got.headers)["X-Coder-Build-Version"] == VERSION
        # A slash at the end, as Go's router of Coder's server takes it off.
        got = await fetch(router(rig), "GET", "/api/v2/things/a/", token=rig.token)
        assert got.status == 200
        got = await fetch(router(rig), "HEAD", "/api/v2/open")
        assert got.status == 200


@pytest.mark.parametrize(
    "path",
    ["/api/v2/nothing", "/api/v2/things", "/api/v2/things//", "/api/", "/api/v1"],
)
async def test_no_such_route(path: str, tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        assert router(rig).knows(path)
        got = await fetch(router(rig), "GET", path, token=rig.token)
        assert got.status == 404
        assert body_of(got) == {"message": "Route not found."}


async def test_what_is_not_the_api(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        assert not router(rig).knows("/debug/vars")
        assert not router(rig).knows("/")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
async def test_methods_that_are_not_there(method: str, tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        got = await fetch(router(rig), method, "/api/v2/things/a", token=rig.token)
        assert got.status == 405
        assert got.body == b""
        assert dict(got.headers)["Allow"] == "GET, POST"


@pytest.mark.parametrize(
    ("token", "detail"),
    [
        ("", 'Cookie "coder_session_token" or query parameter must be provided.'),
        (
            "abc",
            (
                "Invalid API key format: incorrect amount of API key parts, "
                "expected 2 got 1"
            ),
        ),
        (
            "abc-def",
            "Invalid API key format: invalid API key ID length, expected 10 got 3",
        ),
        (
            "0123456789-def",
            "Invalid API key format: invalid API key secret length, expected 22 got 3",
        ),
        ("0123456789-0123456789012345678901", "API key is invalid."),
    ],
)
async def test_users_without_a_good_token(
    token: str, detail: str, tmp_path: Path
) -> None:
    async with open_rig(tmp_path) as rig:
        got = await fetch(router(rig), "GET", "/api/v2/things/a", token=token)
        assert got.status == 401
        assert body_of(got) == {
            "message": "You are signed out or your session has expired. "
            "Please sign in again to continue.",
            "detail": detail,
        }


@pytest.mark.parametrize(
    ("token", "message", "detail"),
    [
        ("", 'Cookie "coder_session_token" must be provided.', None),
        (
            "abc",
            "Workspace agent token invalid.",
            "An agent token must be a valid UUIDv4. (len 3)",
        ),
        (
            "8c7d5f4e-0b1a-4c2d-9e3f-a1b2c3d4e5f6",
            "Workspace agent not authorized.",
            (
                "The agent cannot authenticate until the workspace provision job has "
                "been completed. If the job is no longer running, this agent is "
                "invalid."
            ),
        ),
    ],
)
async def test_agents_without_a_good_token(
    token: str, message: str, detail: str | None, tmp_path: Path
) -> None:
    async with open_rig(tmp_path) as rig:
        got = await fetch(router(rig), "GET", "/api/v2/things/me", token=token)
        assert got.status == 401
        answer = body_of(got)
        assert answer["message"] == message
        assert answer.get("detail") == detail


async def test_agents_and_admins(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        got = await fetch(
            router(rig), "GET", "/api/v2/things/me", token=str(rig.agent_token)
        )
        assert body_of(got)["agent"] == "main"
        got = await fetch(router(rig), "GET", "/api/v2/admin", token=rig.token)
        assert got.status == 403
        assert body_of(got)["message"] == "Forbidden."
        got = await fetch(router(rig), "GET", "/api/v2/admin", token=rig.root_token)
        assert got.status == 200


async def test_a_store_that_is_down_is_said(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        got = await fetch(router(rig), "GET", "/api/v2/down")
        assert got.status == 500
        assert body_of(got) == {
            "message": "database not reachable", "detail": "disk full",
        }  # fmt: skip
        assert (await fetch(router(rig), "GET", "/api/v2/refuse")).status == 418


async def test_the_limit_comes_before_the_refusal(tmp_path: Path) -> None:
    asked: list[str | None] = []

    def limit(request: Request, user: User | None) -> Response | None:
        asked.append(None if user is None else user.username)
        return json_answer(429, "slow down")

    async with open_rig(tmp_path) as rig:
        limited = Router(rig.context, ROUTES, limit=limit)
        assert (await fetch(limited, "GET", "/api/v2/things/a")).status == 429
        got = await fetch(limited, "GET", "/api/v2/things/a", token=rig.token)
        assert got.status == 429
        assert asked == [None, "alice"]


def with_headers(*headers: tuple[bytes, bytes], query: str = "") -> Request:
    return Request("GET", "/", "/", query=query, headers=headers)


@pytest.mark.parametrize(
    ("request_", "token"),
    [
        (with_headers(), ""),
        (with_headers((b"coder-session-token", b"h")), "h"),
        (
            with_headers((b"coder-session-token", b"h"), query="coder_session_token=q"),
            "q",
        ),
        (
            with_headers(
                (b"cookie", b"a=b; coder_session_token=c; d=e"),
                (b"coder-session-token", b"h"),
                query="coder_session_token=q",
            ),
            "c",
        ),
        (
            with_headers(
                (b"cookie", b"coder_session_token="), (b"coder-session-token", b"h")
            ),
            "h",
        ),
        # Somebody else's cookie that Python's parser does not like.
        (
            with_headers(
                (b"cookie", b'x@y={"a":1}; coder_session_token=c'),
                (b"coder-session-token", b"h"),
            ),
            "c",
        ),
    ],
)
def test_where_tokens_are(request_: Request, token: str) -> None:
    assert session_token(request_) == token


async def test_takeovers_pass(tmp_path: Path) -> None:
    async def take(request: ApiRequest) -> Takeover:
        async def serve(*args: object) -> None:
            raise AssertionError

        return Takeover(serve)

    async with open_rig(tmp_path) as rig:
        taking = Router(rig.context, [Route("GET", "/x", take, Auth.NONE)])
        answer = await taking.answer(Request("GET", "/x", "/x"))
        assert isinstance(answer, Takeover)
