from __future__ import annotations

from uuid import UUID

import pytest

from relay.store.model import (
    AppHealth,
    ConnectionAction,
    ConnectionKind,
    LifecycleState,
    LogLevel,
    NewAgent,
    NewApiKey,
    ScriptStage,
    ScriptStatus,
    SigningKey,
    check_name,
)
from tailnet.errors import InvalidRecordError
from tests.relay.store.stores import NOW, furnished


@pytest.mark.parametrize("name", ["a", "7", "A-b-3", "x" * 32, "newer", "me-2", "0-0"])
def test_names_that_may_be(name: str) -> None:
    check_name("a user", name)


@pytest.mark.parametrize(
    "name",
    ["", "x" * 33, "-a", "a-", "a--b", "a_b", "a b", "a.b", "a/b", "ä", "a\n", "٣"],
)
def test_names_that_break_the_rule(name: str) -> None:
    with pytest.raises(InvalidRecordError, match="1 to 32 letters and digits") as exc:
        check_name("an agent", name)
    assert repr(name) in str(exc.value)
    assert "an agent" in str(exc.value)
    assert "\n" not in str(exc.value)


@pytest.mark.parametrize("name", ["new", "Create", "me", "ME"])
def test_reserved_names(name: str) -> None:
    with pytest.raises(InvalidRecordError, match="reserved"):
        check_name("a user", name)


def test_members_are_in_the_order_of_the_protocol() -> None:
    # agent/proto/agent.proto; where the numbers begin with UNSPECIFIED, the
    # first member here is number 1.
    assert [*LifecycleState].index(LifecycleState.READY) + 1 == 5
    assert [*LifecycleState].index(LifecycleState.OFF) + 1 == 9
    assert [*LogLevel].index(LogLevel.ERROR) + 1 == 5
    assert [*AppHealth].index(AppHealth.UNHEALTHY) + 1 == 4
    assert [*ConnectionAction].index(ConnectionAction.DISCONNECT) + 1 == 2
    assert [*ConnectionKind].index(ConnectionKind.RECONNECTING_PTY) == 4
    assert [*ScriptStage].index(ScriptStage.CRON) == 2
    assert [*ScriptStatus].index(ScriptStatus.PIPES_LEFT_OPEN) == 3


async def test_secrets_do_not_show(tmp_path: object) -> None:
    secret = SigningKey("kid", "resume-token", b"hidden", NOW)
    assert "hidden" not in repr(secret)
    from pathlib import Path

    async with furnished(Path(str(tmp_path))) as (_, house):
        assert isinstance(house.key, NewApiKey)
        assert house.key.token.partition("-")[2] not in repr(house.key)
        assert isinstance(house.agent, NewAgent)
        assert isinstance(house.agent.token, UUID)
        assert str(house.agent.token) not in repr(house.agent)
