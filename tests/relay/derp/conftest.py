"""Fixtures: a running switch of every kind, on every transport."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import pytest
import trio
import trio.testing

from relay.derp.pure_switch import PureSwitch
from relay.derp.switch import Limits, Switch
from tests.relay.derp.switch_rig import TRANSPORTS, MakeSwitch, Rig


def _run_autojump(function: Callable[..., Awaitable[Any]], **kwargs: Any) -> Any:
    kwargs["clock"] = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(function, **kwargs)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a rig run on the autojump clock, all of them.

    pytest-trio gives a test the clock that the test itself asks for, not one
    that its fixtures ask for: forgetting it would pass, slowly.
    """
    for item in items:
        if "open_rig" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.trio(run=_run_autojump), append=False)


def make_pure(
    *, limits: Limits, queue_total: int, jitter: Callable[[], float]
) -> Switch:
    # Turns of any length: what happens is not to depend on the machine.
    return PureSwitch(
        limits=limits, queue_total=queue_total, jitter=jitter, turn_time=math.inf
    )


IMPLEMENTATIONS: dict[str, MakeSwitch] = {"python": make_pure}


class OpenRig(Protocol):
    """Opens a rig whose switch runs while the body does."""

    def __call__(
        self,
        *,
        transport: str = "plain",
        limits: Limits | None = None,
        queue_total: int = 1 << 30,
        jitter: Callable[[], float] = lambda: 0.0,
    ) -> AbstractAsyncContextManager[Rig]: ...


@pytest.fixture(params=IMPLEMENTATIONS)
def open_rig(request: pytest.FixtureRequest) -> OpenRig:
    make_switch = IMPLEMENTATIONS[request.param]

    @asynccontextmanager
    async def opened(
        *,
        transport: str = "plain",
        limits: Limits | None = None,
        queue_total: int = 1 << 30,
        jitter: Callable[[], float] = lambda: 0.0,
    ) -> AsyncIterator[Rig]:
        switch = make_switch(
            limits=limits or Limits(), queue_total=queue_total, jitter=jitter
        )
        assert trio.current_time() < 10, "not on the autojump clock"
        rig = Rig(switch, transport)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(switch.run)
                # A hang fails at once: virtual seconds cost nothing.
                with trio.fail_after(3600):
                    yield rig
                nursery.cancel_scope.cancel()
        finally:
            rig.close()

    return opened


@pytest.fixture
async def rig(open_rig: OpenRig) -> AsyncIterator[Rig]:
    """A rig whose clients speak DERP over bare sockets."""
    async with open_rig() as opened:
        yield opened


@pytest.fixture(params=TRANSPORTS)
async def any_rig(
    request: pytest.FixtureRequest, open_rig: OpenRig
) -> AsyncIterator[Rig]:
    """A rig, for each transport."""
    async with open_rig(transport=request.param) as opened:
        yield opened
