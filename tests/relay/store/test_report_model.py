from __future__ import annotations

from relay.store.report_model import (
    ConnectionAction,
    ConnectionKind,
    LogLevel,
    ScriptStage,
    ScriptStatus,
)


def test_members_are_in_the_order_of_the_protocol() -> None:
    # agent/proto/agent.proto; where the numbers begin with UNSPECIFIED, the
    # first member here is number 1.
    assert [*LogLevel].index(LogLevel.ERROR) + 1 == 5
    assert [*ConnectionAction].index(ConnectionAction.DISCONNECT) + 1 == 2
    assert [*ConnectionKind].index(ConnectionKind.RECONNECTING_PTY) == 4
    assert [*ScriptStage].index(ScriptStage.CRON) == 2
    assert [*ScriptStatus].index(ScriptStatus.PIPES_LEFT_OPEN) == 3
