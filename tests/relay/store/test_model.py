from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from relay.store.model import (
    CONNECTED_FOR,
    Agent,
    AppHealth,
    ConnectionStatus,
    LifecycleState,
    NewAgent,
    NewApiKey,
    SigningKey,
    check_name,
    connection_status,
)
from tailnet.errors import InvalidRecordError
from tests.relay.store.stores import NOW, SECOND, furnished


@pytest.mark.parametrize(
    "name", ["a", "7", "A-b-3", "x" * 32, "newer", "New", "me", "0-0"]
)
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


@pytest.mark.parametrize("name", ["new", "create"])
def test_reserved_names(name: str) -> None:
    with pytest.raises(InvalidRecordError, match="reserved"):
        check_name("a user", name)


def test_members_are_in_the_order_of_the_protocol() -> None:
    # agent/proto/agent.proto; where the numbers begin with UNSPECIFIED, the
    # first member here is number 1.
    assert [*LifecycleState].index(LifecycleState.READY) + 1 == 5
    assert [*LifecycleState].index(LifecycleState.OFF) + 1 == 9
    assert [*AppHealth].index(AppHealth.UNHEALTHY) + 1 == 4


def test_whether_an_agent_is_there() -> None:
    agent = Agent(uuid4(), uuid4(), "main", None, NOW)
    assert connection_status(agent, NOW) is ConnectionStatus.CONNECTING
    agent = replace(agent, first_connected_at=NOW, last_connected_at=NOW)
    latest = NOW + CONNECTED_FOR
    assert connection_status(agent, latest) is ConnectionStatus.CONNECTED
    # Its server was killed.
    late = latest + SECOND / 1_000_000
    assert connection_status(agent, late) is ConnectionStatus.DISCONNECTED
    agent = replace(agent, disconnected_at=NOW + SECOND)
    assert connection_status(agent, NOW + SECOND) is ConnectionStatus.DISCONNECTED
    agent = replace(agent, last_connected_at=NOW + 2 * SECOND)
    assert connection_status(agent, NOW + 2 * SECOND) is ConnectionStatus.CONNECTED


async def test_secrets_do_not_show(tmp_path: Path) -> None:
    secret = SigningKey("kid", "resume-token", b"hidden", NOW)
    assert "hidden" not in repr(secret)
    async with furnished(tmp_path) as (_, house):
        assert isinstance(house.key, NewApiKey)
        assert house.key.token.partition("-")[2] not in repr(house.key)
        assert isinstance(house.agent, NewAgent)
        assert isinstance(house.agent.token, UUID)
        assert str(house.agent.token) not in repr(house.agent)
