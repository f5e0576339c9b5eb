from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import trio
import trio.testing

from relay.api.derp_verify import (
    MAX_BODY_LEN,
    MAX_WAITING,
    PATIENCE,
    CoordinatorAdmission,
    DerpVerifier,
    read_verify_token,
)
from relay.derp.session import Newcomer
from relay.pages.page import Request, Response
from tailnet.derp.handshake import ClientInfo
from tailnet.errors import ConfigError
from tailnet.keys import NodePublic

KNOWN = NodePublic(bytes(range(32)))
STRANGER = NodePublic(bytes(32 * [7]))
TOKEN = "s3cret-token"


def newcomer(key: NodePublic) -> Newcomer:
    return Newcomer(key, ClientInfo(), ("192.0.2.1", 1))


def question(key: str = str(KNOWN), source: str = "192.0.2.1") -> bytes:
    # As derper writes it (tailcfg.DERPAdmitClientRequest).
    return f'{{"NodePublic":"{key}","Source":"{source}"}}'.encode()


def ask(
    body: bytes = b"",
    *,
    authorization: str = f"Bearer {TOKEN}",
    method: str = "POST",
    token: str = TOKEN,
) -> Response:
    verifier = DerpVerifier(token, lambda key: key == KNOWN)
    headers = ((b"authorization", authorization.encode()),) if authorization else ()
    request = Request(method, "/derp/verify", "/derp/verify", headers=headers)
    return verifier.answer(request, body)


@pytest.mark.parametrize(("key", "allow"), [(KNOWN, True), (STRANGER, False)])
def test_answer(key: NodePublic, allow: bool) -> None:
    answer = ask(question(str(key)))
    assert answer.status == 200
    assert json.loads(answer.body) == {"Allow": allow}


def test_names_may_be_of_any_case_and_source_may_be_missing() -> None:
    body = json.dumps({"nodepublic": str(KNOWN)}).encode()
    assert json.loads(ask(body).body) == {"Allow": True}


def test_derper_sends_the_token_as_the_password_of_its_url() -> None:
    pair = base64.b64encode(f"derper:{TOKEN}".encode()).decode()
    assert ask(question(), authorization=f"Basic {pair}").status == 200


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
def test_wrong_token(authorization: str) -> None:
    answer = ask(question(), authorization=authorization)
    assert answer.status == 401
    assert "WWW-Authenticate" in dict(answer.headers)
    assert b"Allow" not in answer.body


def test_no_token_means_off_even_for_an_empty_one() -> None:
    assert ask(question(), token="", authorization="Bearer ").status == 404
    assert ask(question(), token="", authorization="").status == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD"])
def test_other_methods(method: str) -> None:
    answer = ask(question(), method=method)
    assert answer.status == 405
    assert dict(answer.headers)["Allow"] == "POST"


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
def test_bad_question(body: bytes, detail: str) -> None:
    answer = ask(body)
    assert answer.status == 400
    told = json.loads(answer.body)
    assert told["message"] == "Request body must be valid JSON."
    assert detail in told["detail"]


def test_long_body() -> None:
    body = question().ljust(MAX_BODY_LEN)
    assert ask(body).status == 200
    assert ask(body + b" ").status == 413


def test_token_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"  {TOKEN}\n")
    assert read_verify_token(path) == TOKEN


@pytest.mark.parametrize("text", ["", "  \n", "two words", "tök", "a\x00b"])
def test_bad_token_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match="token"):
        read_verify_token(path)


@pytest.mark.parametrize("raw", [None, b"\xff"])
def test_unreadable_token_file(tmp_path: Path, raw: bytes | None) -> None:
    path = tmp_path / "token"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(ConfigError, match="cannot read the token file"):
        read_verify_token(path)


async def test_admission_of_a_known_key_does_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    admit = CoordinatorAdmission(lambda key: key == KNOWN)
    assert await admit(newcomer(KNOWN)) is None
    assert trio.current_time() == 0.0


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
