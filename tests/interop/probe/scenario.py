"""A scenario: a set of cases, each of which puts one question to a relay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from tests.interop.probe.answers import PROBE_ERROR, Json
from tests.interop.probe.wire import Target

__all__ = ("Case", "Scenario", "run_cases")

Case = Callable[[], Awaitable[Json]]

# Longer than any case may take: the one for KeepAlive waits 70 s.
_CASE_TIMEOUT: Final = 100.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named set of cases.

    Attributes:
        name: What it is about; first half of a case's name.
        run: Asks a relay, and returns the answers by case.
        needs_tls: Only for relays that speak TLS.
        needs_helper: Only for relays with the plain helper port (port 80).
        needs_stun: Only for relays with STUN.
        slow: It mostly waits, for 10 s or more.
    """

    name: str
    run: Callable[[Target], Awaitable[dict[str, Json]]]
    needs_tls: bool = False
    needs_helper: bool = False
    needs_stun: bool = False
    slow: bool = False

    def fits(self, target: Target) -> bool:
        """Whether ``target`` has what this asks about."""
        return (
            (target.tls or not self.needs_tls)
            and (target.http_port is not None or not self.needs_helper)
            and (target.stun_port is not None or not self.needs_stun)
        )


async def run_cases(cases: Mapping[str, Case], *, at_once: int = 8) -> dict[str, Json]:
    """Ask all cases, several at a time.

    Args:
        cases: Functions by the name of the case.
        at_once: How many run at a time.

    Returns:
        The answers, in the order of ``cases``. A case that raised has an
        answer that equals no other.
    """
    answers: dict[str, Json] = dict.fromkeys(cases)
    limiter = trio.CapacityLimiter(at_once)

    async def ask(name: str, case: Case) -> None:
        async with limiter:
            try:
                with trio.fail_after(_CASE_TIMEOUT):
                    answers[name] = await case()
            except Exception as exc:
                # The rest of the table is worth having, so this is an answer
                # too, and the comparer refuses it.
                answers[name] = {PROBE_ERROR: f"{type(exc).__name__}: {exc}"}

    async with trio.open_nursery() as nursery:
        for name, case in cases.items():
            nursery.start_soon(ask, name, case)
    return answers
