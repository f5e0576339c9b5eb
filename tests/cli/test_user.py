from __future__ import annotations

import re
from uuid import UUID

import pytest

from tests.cli.program import Program

TOKEN = "ABCDEFGHIJ-abcdefghijklmnopqrstuv"


def test_create_shows_the_token_once(program: Program) -> None:
    ran = program.run("user", "create", "alice")
    assert ran.status == 0
    found = re.search(r"^token  (\w{10}-\w{22})$", ran.out, re.MULTILINE)
    assert found is not None
    assert ran.err == "The token is not shown again.\n"
    token = found[1]
    owner = program.on_store(lambda store: store.authenticate_api_key(token))
    assert owner is not None
    assert (owner.username, owner.is_admin) == ("alice", False)
    for args in (("user", "show", "alice"), ("user", "list"), ("token", "list")):
        for more in ((), ("-o", "json")):
            assert token[11:] not in program.text(*args, *more)


def test_create_as_json(program: Program) -> None:
    made = program.json("user", "create", "alice", "--admin", "--token", TOKEN)
    assert made.pop("created_at").endswith("Z")
    assert UUID(made.pop("id")).version == 4
    assert made == {
        "username": "alice",
        "is_admin": True,
        "api_key_id": TOKEN[:10],
        "token": TOKEN,
    }
    owner = program.on_store(lambda store: store.authenticate_api_key(TOKEN))
    assert owner is not None
    assert owner.is_admin


def test_user_is_not_made_without_the_wanted_token(program: Program) -> None:
    message = program.error("user", "create", "alice", "--token", "short", status=2)
    assert "an API key is 10 letters and digits, a hyphen, and 22 more" in message
    assert "short" not in message
    program.text("user", "create", "bob", "--token", TOKEN)
    message = program.error("user", "create", "alice", "--token", TOKEN, status=1)
    assert message == "tailnet: there is an API key ABCDEFGHIJ already"
    assert [user["username"] for user in program.json("user", "list")] == ["bob"]


def test_users_that_cannot_be_made(program: Program) -> None:
    program.text("user", "create", "alice")
    assert (
        program.error("user", "create", "Alice", status=1)
        == "tailnet: there is a user 'alice' already"
    )
    for name in ("a_b", "x" * 33, "a/b", "", "new"):
        assert "is no name for a user" in program.error(
            "user", "create", name, status=2
        )
    assert "Missing argument 'NAME'" in program.error("user", "create", status=2)


def test_list_and_show(furnished: Program) -> None:
    furnished.text("user", "create", "bob", "--admin")
    alice, bob = furnished.json("user", "list")
    assert (alice["username"], bob["username"]) == ("alice", "bob")
    lines = furnished.text("user", "list").splitlines()
    assert lines[0].split() == ["NAME", "ID", "ADMIN", "CREATED"]
    assert lines[2].split()[:3] == ["bob", bob["id"], "yes"]
    for target in ("alice", "ALICE", alice["id"]):
        shown = furnished.json("user", "show", target)
        assert {name: shown[name] for name in alice} == alice
        assert [w["name"] for w in shown["workspaces"]] == ["dev"]
        assert len(shown["api_keys"]) == 1
    assert re.search(
        r"^workspaces +dev$", furnished.text("user", "show", "alice"), re.MULTILINE
    )


def test_delete(furnished: Program) -> None:
    message = furnished.error("user", "delete", "alice", status=1)
    assert message == (
        "tailnet: 'alice' owns workspaces, such as 'dev': delete those first"
    )
    furnished.text("workspace", "delete", "alice/dev")
    assert furnished.text("user", "delete", "alice") == "deleted user  alice\n"
    assert furnished.json("user", "list") == []
    assert furnished.text("user", "list") == ""
    assert furnished.json("token", "list") == []
    bob = furnished.json("user", "create", "bob")
    assert furnished.json("user", "delete", bob["id"])["username"] == "bob"


@pytest.mark.parametrize("command", ["show", "delete"])
def test_nobody(furnished: Program, command: str) -> None:
    for target in ("bob", "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f0"):
        message = furnished.error("user", command, target, status=1)
        assert "there is no user" in message
        assert target in message
        assert "tailnet user list" in message
