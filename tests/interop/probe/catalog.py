"""All scenarios, and the run of them against one relay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from tests.interop.probe.answers import PROBE_ERROR, Answers
from tests.interop.probe.items import (
    client_info,
    debug,
    duplicates,
    frozen,
    keep_alive,
    packets,
    pages,
    peer_gone,
    stun,
    tls,
    upgrade,
    websockets,
)
from tests.interop.probe.scenario import Scenario
from tests.interop.probe.wire import Target

__all__ = ("SCENARIOS", "probe")

SCENARIOS: Final[tuple[Scenario, ...]] = (
    upgrade.UPGRADE,
    upgrade.UPGRADE_REFUSED,
    upgrade.LONG_HEADS,
    upgrade.AFTER_REQUESTS,
    tls.TLS_CERTIFICATES,
    tls.TLS_HANDSHAKES,
    websockets.WEBSOCKET,
    websockets.WEBSOCKET_STREAM,
    websockets.WEBSOCKET_MESSAGES,
    client_info.CLIENT_INFO_TEXTS,
    client_info.CLIENT_INFO_FRAMES,
    packets.PACKETS,
    packets.UNKNOWN_PEERS,
    packets.OTHER_FRAMES,
    packets.PINGS,
    peer_gone.PEER_GONE,
    duplicates.DUPLICATES,
    duplicates.DUPLICATES_LIFE,
    frozen.FROZEN,
    frozen.SLOW,
    pages.PAGES,
    pages.BODIES,
    pages.CHALLENGES,
    pages.HELPER,
    debug.DEBUG,
    debug.METRICS,
    stun.STUN,
    client_info.SILENCE,
    tls.TLS_SILENCE,
    keep_alive.KEEP_ALIVE,
)

# Waiting costs nothing, so what mostly waits starts first and at once.
_AT_ONCE: Final = 2


async def probe(
    target: Target,
    *,
    wanted: Callable[[Scenario], bool] = lambda scenario: True,
) -> Answers:
    """Ask a relay everything that fits it; about 75 s, most of it waiting.

    Args:
        target: The relay.
        wanted: Which scenarios to run.

    Returns:
        The answers, in the order of SCENARIOS.
    """
    chosen = [item for item in SCENARIOS if item.fits(target) and wanted(item)]
    answers: Answers = {item.name: {} for item in chosen}
    limiter = trio.CapacityLimiter(_AT_ONCE)

    async def run(item: Scenario) -> None:
        try:
            answers[item.name] = await item.run(target)
        except Exception as exc:
            text = f"{type(exc).__name__}: {exc}"
            answers[item.name] = {"all": {PROBE_ERROR: text}}

    async def run_in_turn(item: Scenario) -> None:
        async with limiter:
            await run(item)

    async with trio.open_nursery() as nursery:
        for item in chosen:
            nursery.start_soon(run if item.slow else run_in_turn, item)
    return answers
