from __future__ import annotations

import pytest

from tailnet.control.keepalive import PING_INTERVAL, PING_TIMEOUT, KeepAlive
from tailnet.errors import RemoteProtocolError


def test_ping_answer_ping() -> None:
    keepalive = KeepAlive(100.0)
    assert keepalive.last_pong_at == 100.0
    assert keepalive.next_deadline() == 100.0 + PING_INTERVAL
    assert keepalive.handle_timeout(129.0) is None
    assert keepalive.handle_timeout(130.0) == 0
    assert keepalive.next_deadline() == 130.0 + PING_TIMEOUT
    assert keepalive.handle_timeout(139.0) is None
    assert keepalive.handle_pong(0, 139.5) == 9.5
    assert keepalive.last_pong_at == 139.5
    # An interval after the answer, as Go waits.
    assert keepalive.next_deadline() == 139.5 + PING_INTERVAL
    assert keepalive.handle_timeout(170.0) == 1


def test_no_answer() -> None:
    keepalive = KeepAlive(0.0, interval=15.0, timeout=4.0)
    assert keepalive.handle_timeout(15.0) == 0
    with pytest.raises(RemoteProtocolError, match="keepalive timeout"):
        keepalive.handle_timeout(19.0)


def test_answers_that_nobody_asked_for() -> None:
    keepalive = KeepAlive(0.0)
    assert keepalive.handle_pong(0, 5.0) is None
    assert keepalive.handle_timeout(30.0) == 0
    assert keepalive.handle_pong(1, 31.0) is None
    assert keepalive.last_pong_at == 0.0
    assert keepalive.handle_pong(0, 32.0) == 2.0
    assert keepalive.handle_pong(0, 33.0) is None
