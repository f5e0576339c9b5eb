from __future__ import annotations

from datetime import datetime, timedelta

from relay.store.sql_store import SqlStore
from tests.cli.program import Program

TOKEN = "ABCDEFGHIJ-abcdefghijklmnopqrstuv"


def test_create_list_revoke(furnished: Program) -> None:
    made = furnished.json(
        "token", "create", "alice", "--token", TOKEN, "--name", "laptop"
    )
    assert (made["token"], made["id"], made["name"]) == (TOKEN, TOKEN[:10], "laptop")
    assert (made["username"], made["expires_at"]) == ("alice", None)
    del made["token"]
    assert furnished.json("token", "list", "alice")[1] == made
    assert TOKEN[11:] not in furnished.text("token", "list")
    assert "laptop" in furnished.text("token", "list")

    async def owner(store: SqlStore) -> str | None:
        user = await store.authenticate_api_key(TOKEN)
        return None if user is None else user.username

    assert furnished.on_store(owner) == "alice"
    assert furnished.text("token", "revoke", TOKEN[:10]) == "revoked  ABCDEFGHIJ\n"
    assert furnished.on_store(owner) is None
    message = furnished.error("token", "revoke", TOKEN[:10], status=1)
    assert message == "tailnet: there is no API key 'ABCDEFGHIJ'"


def test_token_for_people(furnished: Program) -> None:
    ran = furnished.run("token", "create", "alice", "--expires-in", "12h")
    assert (ran.status, ran.err) == (0, "The token is not shown again.\n")
    fields = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert fields["token"].startswith(fields["id"] + "-")
    assert "expires" in fields


def test_expiry(furnished: Program) -> None:
    made = furnished.json("token", "create", "alice", "--expires-in", "30d")
    created, expires = (
        datetime.fromisoformat(made[name]) for name in ("created_at", "expires_at")
    )
    assert abs(expires - created - timedelta(days=30)) < timedelta(minutes=5)
    for wrong in ("30", "x", "-1d", "0s", "99999d"):
        message = furnished.error(
            "token", "create", "alice", "--expires-in", wrong, status=2
        )
        assert repr(wrong) in message


def test_tokens_that_cannot_be_made(furnished: Program) -> None:
    create = ("token", "create")
    furnished.text(*create, "alice", "--token", TOKEN)
    for args, status, text in (
        (("bob",), 1, "there is no user 'bob'"),
        (("alice", "--token", TOKEN), 1, "there is an API key ABCDEFGHIJ already"),
        (("alice", "--token", "x"), 2, "10 letters and digits"),
        (("alice", "--name", "x" * 65), 2, "at most 64 characters"),
    ):
        assert text in furnished.error(*create, *args, status=status)
    assert "no user 'bob'" in furnished.error("token", "list", "bob", status=1)
