from __future__ import annotations

from uuid import UUID

import pytest

from tests.cli.program import Program

WANTED = "11111111-2222-4333-8444-555555555555"


def test_create(program: Program) -> None:
    alice = program.json("user", "create", "alice")
    made = program.json("workspace", "create", "alice/dev", "--id", WANTED)
    assert made["id"] == WANTED
    assert (made["owner_id"], made["owner_name"]) == (alice["id"], "alice")
    assert made["name"] == "dev"
    text = program.text("workspace", "create", "ALICE/two")
    path, id_ = (line.split()[1] for line in text.splitlines())
    assert path == "alice/two"
    assert UUID(id_).version == 4


def test_workspaces_that_cannot_be_made(furnished: Program) -> None:
    create = ("workspace", "create")
    existing = furnished.json("workspace", "show", "alice/dev")["id"]
    for args, status, text in (
        (("alice/Dev",), 1, "there is a workspace alice/Dev already"),
        (("bob/dev",), 1, "there is no user 'bob'; see: tailnet user list"),
        (("alice/x", "--id", existing), 1, f"a workspace {existing} already"),
        (("alice/x", "--id", "7"), 2, "'7' is not a UUID such as"),
        (("alice/x", "--id", str(UUID(int=0))), 2, "may not be the nil UUID"),
        (("alice/x_y",), 2, "'x_y' is no name for a workspace"),
        (("alice",), 2, "'alice' is not OWNER/NAME"),
        (("alice/",), 2, "'alice/' is not OWNER/NAME"),
        (("alice/a/b",), 2, "'alice/a/b' is not OWNER/NAME"),
    ):
        assert text in furnished.error(*create, *args, status=status)
    assert len(furnished.json("workspace", "list")) == 1


def test_list_and_show(furnished: Program) -> None:
    furnished.text("user", "create", "bob")
    furnished.text("workspace", "create", "bob/dev")
    both = furnished.json("workspace", "list")
    assert [w["owner_name"] for w in both] == ["alice", "bob"]
    assert furnished.json("workspace", "list", "bob") == both[1:]
    lines = furnished.text("workspace", "list").splitlines()
    assert [line.split()[0] for line in lines] == ["WORKSPACE", "alice/dev", "bob/dev"]
    for target in ("alice/dev", both[0]["id"]):
        shown = furnished.json("workspace", "show", target)
        assert {name: shown[name] for name in both[0]} == both[0]
        assert [agent["name"] for agent in shown["agents"]] == ["main"]
    assert "alice/dev" in furnished.text("workspace", "show", "alice/dev")
    assert "no user 'carol'" in furnished.error("workspace", "list", "carol", status=1)


def test_delete_takes_the_agents_along(furnished: Program) -> None:
    text = furnished.text("workspace", "delete", "alice/dev")
    assert text == "deleted workspace  alice/dev\n"
    assert furnished.json("agent", "list") == []
    made = furnished.json("workspace", "create", "alice/dev")
    assert furnished.json("workspace", "delete", made["id"]) == made


@pytest.mark.parametrize("command", ["show", "delete"])
def test_no_such_workspace(furnished: Program, command: str) -> None:
    for target, text in (
        ("alice/nothing", "there is no workspace alice/nothing"),
        (WANTED, f"there is no workspace {WANTED}"),
        ("bob/dev", "there is no user 'bob'"),
    ):
        assert text in furnished.error("workspace", command, target, status=1)
    message = furnished.error("workspace", command, "dev", status=2)
    assert "'dev' is not OWNER/WORKSPACE or a UUID" in message
