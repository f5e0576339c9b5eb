from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing

from relay.api.context import ApiContext, ApiRequest
from relay.api.derp_verify import (
    MAX_BODY_LEN,
    MAX_WAITING,
    PATIENCE,
    VERIFY_ROUTES,
    CoordinatorAdmission,
    coordinator_admission,
    verify,
)
from relay.api.router import Router
from relay.derp.session import Newcomer
from relay.pages.page import Request, Response
from tailnet.coordinator.serve import CoordinatorService
from tailnet.derp.handshake import ClientInfo
from tailnet.keys import NodePublic
from tests.relay.api.rig import FakeCoordinator, fetch, open_rig

KNOWN = NodePublic(bytes(range(32)))
STRANGER = NodePublic(bytes(32 * [7]))
TOKEN = "s3cret-token"


def newcomer(key: NodePublic) -> Newcomer:
    return Newcomer(key, ClientInfo(), ("192.0.2.1", 1))


def question(key: str = str(KNOWN), source: str = "192.0.2.1") -> bytes:
    # As derper writes it (tailcfg.DERPAdmitClientRequest).
    return f'{{"NodePublic":"{key}","Source":"{source}"}}'.encode()


async def ask(
    body: bytes = b"",
    *,
    authorization: str = f"Bearer {TOKEN}",
    token: str | None = TOKEN,
) -> Response:
    context = SimpleNamespace(
        settings=SimpleNamespace(verify_token=token),
        coordinator=FakeCoordinator(known={KNOWN}),
    )
    headers = ((b"authorization", authorization.encode()),) if authorization else ()
    request = Request(
        "POST", "/derp/verify", "/derp/verify", headers=headers, body=body
    )
    return await verify(ApiRequest(request, {}, cast("ApiContext", context)))


@pytest.mark.parametrize(("key", "allow"), [(KNOWN, True), (STRANGER, False)])
async def test_answer(key: NodePublic, allow: bool) -> None:
    answer = await ask(question(str(key)))
    assert answer.status == 200
    assert json.loads(answer.body) == {"Allow": allow}


async def test_names_may_be_of_any_case_and_source_may_be_missing() -> None:
    body = json.dumps({"nodepublic": str(KNOWN)}).encode()
    assert json.loads((await ask(body)).body) == {"Allow": True}


async def test_derper_sends_the_token_as_the_password_of_its_url() -> None:
    pair = base64.b64encode(f"derper:{TOKEN}".encode()).decode()
    assert (await ask(question(), authorization=f"Basic {pair}")).status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer wrong",
        f"bearer {TOKEN}x",
        f"Token {TOKEN}",
        TOKEN,
        "Basic !!!",
        "Basic " + base64.b64encode(TOKEN.encode()).decode(),  # a user, no password
        "Basic " + base64.b64encode(b"u:wrong").decode(),
        "Bearer \xff",
    ],
)
async def test_wrong_token(authorization: str) -> None:
    answer = await ask(question(), authorization=authorization)
    assert answer.status == 401
    assert "WWW-Authenticate" in dict(answer.headers)
    assert b"Allow" not in answer.body


async def test_no_token_means_off_even_for_an_empty_one() -> None:
    for token in (None, ""):
        for authorization in ("Bearer ", "", "Basic Og=="):
            answer = await ask(question(), token=token, authorization=authorization)
            assert answer.status == 404


async def test_other_methods(tmp_path: Path) -> None:
    async with open_rig(tmp_path, verify_token=TOKEN) as rig:
        router = Router(rig.context, VERIFY_ROUTES)
        assert (await fetch(router, "GET", "/derp/verify")).status == 405
        assert (await fetch(router, "POST", "/derp/verify")).status == 401


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\xfd", "codec"),
        (b"[]", "not a JSON object"),
        (b"{}", "NodePublic is missing"),
        (b'{"NodePublic":3}', "NodePublic is missing or no string"),
        (question("nodekey:12"), "64 hex digits"),
        (question("discokey:" + KNOWN.hex), "starts with 'nodekey:'"),
        (b'{"NodePublic":"x","Source":1}', "Source is no string"),
        (b"[" * MAX_BODY_LEN, ""),
    ],
)
async def test_bad_question(body: bytes, detail: str) -> None:
    answer = await ask(body)
    assert answer.status == 400
    told = json.loads(answer.body)
    assert told["message"] == "Request body must be valid JSON."
    assert detail in told["detail"]


async def test_long_body() -> None:
    body = question().ljust(MAX_BODY_LEN)
    assert (await ask(body)).status == 200
    assert (await ask(body + b" ")).status == 413


async def test_admission_of_a_known_key_does_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    admit = CoordinatorAdmission(lambda key: key == KNOWN)
    assert await admit(newcomer(KNOWN)) is None
    assert trio.current_time() == 0.0


async def test_admission_by_the_coordinator(
    autojump_clock: trio.testing.MockClock,
) -> None:
    coordinator = FakeCoordinator(known={KNOWN})
    admit = coordinator_admission(cast("CoordinatorService", coordinator))
    assert await admit(newcomer(KNOWN)) is None
    assert await admit(newcomer(STRANGER)) is not None
    coordinator.known.clear()
    assert await admit(newcomer(KNOWN)) is not None


async def test_admission_waits_for_the_first_update_self(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A node that starts dials its relay before it tells the coordinator."""
    admit = CoordinatorAdmission(
        lambda key: key == KNOWN and trio.current_time() >= 1.0
    )
    assert await admit(newcomer(KNOWN)) is None
    assert trio.current_time() < 1.2


async def test_admission_refuses_a_stranger(
    autojump_clock: trio.testing.MockClock,
) -> None:
    admit = CoordinatorAdmission(lambda key: key == KNOWN)
    refusal = await admit(newcomer(STRANGER))
    assert refusal == "the coordinator does not know this node key"
    assert trio.current_time() == pytest.approx(PATIENCE, abs=0.2)


async def test_strangers_that_wait_are_bounded_and_others_come_in(
    autojump_clock: trio.testing.MockClock,
) -> None:
    admit = CoordinatorAdmission(lambda key: key == KNOWN)
    refusals: list[str | None] = []

    async def dial() -> None:
        refusals.append(await admit(newcomer(STRANGER)))

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_WAITING):
            nursery.start_soon(dial)
        await trio.testing.wait_all_tasks_blocked()
        assert "others wait" in str(await admit(newcomer(STRANGER)))
        assert await admit(newcomer(KNOWN)) is None
        assert trio.current_time() == 0.0
    assert len(refusals) == MAX_WAITING
    # Those that gave up make room.
    assert "does not know" in str(await admit(newcomer(STRANGER)))
