"""Every endpoint with everything that may be wrong with a request to it.

The matrix is made of the route tables, see ``bad_requests``: each wrong has its
status and its words, which the reference tells, and one line in the log.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio.testing

from relay.api.router import Auth, Route
from relay.server import API_ROUTES
from tailnet.coordinator.serve import CoordinatorService
from tests.modules import ROOT
from tests.relay.api.bad_requests import (
    METHODS,
    SHAPES,
    VERIFY_TOKEN,
    Ask,
    Expected,
    good,
    key_of,
    wrongs,
)
from tests.relay.api.clients import ApiClient, open_api
from tests.relay.api.rig import VERSION, Rig, open_rig

REFERENCE = (ROOT / "docs/reference/api.md").read_text("utf-8")
WORDS = " ".join(REFERENCE.split())

every_route = pytest.mark.parametrize("route", API_ROUTES, ids=key_of)


class Answer:
    """An answer, and what was logged meanwhile."""

    def __init__(self, data: bytes, logs: list[Any]) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = dict(line.split(": ", 1) for line in lines)
        self.logs = logs

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"] == "application/json; charset=utf-8"
        assert self.body.endswith(b"\n")
        return json.loads(self.body)


async def ask(api: ApiClient, request: Ask) -> Answer:
    stream = api.connect()
    with structlog.testing.capture_logs() as logs:
        await stream.send_all(request.encode())
        await trio.testing.wait_all_tasks_blocked()
        data = bytes(await stream.receive_some(1 << 16))
    await stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    return Answer(data, logs)


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[tuple[Rig, ApiClient]]:
    async with (
        open_rig(tmp_path, verify_token=VERIFY_TOKEN) as rig,
        open_api(rig, API_ROUTES) as api,
    ):
        rig.context.coordinator = CoordinatorService()
        yield rig, api


def check_log(answer: Answer, request: Ask, route: Route) -> None:
    """One line, which says what was asked and what was answered."""
    (entry,) = answer.logs
    assert entry.pop("remote")[0] == "127.0.0.1"
    assert entry == {
        "event": "refused",
        "log_level": "debug" if route.is_polled else "info",
        "method": request.method,
        "path": request.path,
        "status": answer.status,
    }


def check_body(answer: Answer, expected: Expected) -> None:
    if isinstance(expected.body, str):
        assert answer.body.decode() == expected.body
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        return
    said = answer.json
    # The end of a detail may be a library's words, and those are its own.
    assert str(said.pop("detail", "")).startswith(expected.body.get("detail", ""))
    body = {**expected.body}
    body.pop("detail", None)
    if "validations" not in body:
        said.pop("validations", None)
    assert str(said.pop("message")).startswith(body.pop("message"))
    assert said == body


def row_of(route: Route) -> str:
    """The row of an endpoint in the reference."""
    start = f"| `{key_of(route)}`"
    if route.pattern.endswith("/gitauth"):  # shares one
        start = start.replace("gitauth", "external-auth")
    (row,) = (line for line in REFERENCE.splitlines() if line.startswith(start))
    return row


def test_every_endpoint_has_its_row() -> None:
    """A new one has to say what it does with bad input."""
    assert set(SHAPES) == {key_of(route) for route in API_ROUTES}


@every_route
async def test_nothing_is_wrong_with_the_rest(route: Route, tmp_path: Path) -> None:
    """Without its one wrong, a request of the matrix would be answered."""
    async with serving(tmp_path) as (rig, api):
        answer = await ask(api, good(route, rig))
        shape = SHAPES[key_of(route)]
        if shape.body or not any(not query + body for query, body, *_ in shape.bad):
            assert answer.status < 300
        else:
            # It has no other answer to an agent than an error.
            assert route.auth is Auth.AGENT
        refused = [entry for entry in answer.logs if entry["event"] == "refused"]
        assert len(refused) == (answer.status >= 300)


@every_route
async def test_bad_requests(route: Route, tmp_path: Path) -> None:
    async with serving(tmp_path) as (rig, api):
        for what, request, expected in wrongs(route, rig):
            answer = await ask(api, request)
            try:
                assert answer.status == expected.status
                check_body(answer, expected)
                check_log(answer, request, route)
                if expected.rule:
                    assert expected.rule in WORDS
                else:
                    assert str(answer.status) in row_of(route)
            except AssertionError as exc:
                exc.add_note(f"{key_of(route)}: {what}\n{answer.body!r}")
                raise
            assert answer.headers["X-Coder-Build-Version"] == VERSION


@every_route
async def test_bad_methods(route: Route, tmp_path: Path) -> None:
    assert "other methods are 405 with `Allow`" in REFERENCE
    async with serving(tmp_path) as (rig, api):
        there = {other.method for other in API_ROUTES if other.pattern == route.pattern}
        # With a token and without: there is nothing to keep secret.
        for method in [*METHODS, "BREW"]:
            if method in there:
                continue
            right = good(route, rig)
            for asked in (right, right.without("Coder-Session-Token")):
                request = replace(asked, method=method)
                answer = await ask(api, request)
                assert (answer.status, answer.body) == (405, b"")
                assert answer.headers["Allow"] == ", ".join(sorted(there))
                check_log(answer, request, route)


@pytest.mark.parametrize(
    "route",
    [
        route
        for route in API_ROUTES
        if route.auth is Auth.NONE and route.pattern != "/derp/verify"
    ],
    ids=key_of,
)
async def test_no_token_is_needed_where_none_is_asked_for(
    route: Route, tmp_path: Path
) -> None:
    """A wrong one is nobody's business there."""
    async with serving(tmp_path) as (rig, api):
        for token in ("", "abc", rig.bob_token):
            asked = good(route, rig).having(Coder_Session_Token=token)
            answer = await ask(api, asked)
            assert answer.status == (101 if SHAPES[key_of(route)].is_websocket else 200)
            assert answer.logs == []


async def test_paths_that_are_not_there(tmp_path: Path) -> None:
    async with serving(tmp_path) as (rig, api):
        for path in ("/api/v2/", "/api/v2/nothing", "/api/v2/workspaceagents/me/x/y"):
            request = Ask("GET", path).having(Coder_Session_Token=rig.token)
            answer = await ask(api, request)
            assert (answer.status, answer.json) == (
                404,
                {"message": "Route not found."},
            )
            check_log(answer, request, API_ROUTES[0])
