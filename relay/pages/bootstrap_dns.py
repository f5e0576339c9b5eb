"""``/bootstrap-dns``: names that clients could not resolve themselves.

A client whose DNS is broken asks relays, whose addresses it knows, for those
of its control server (tailscale ``cmd/derper/bootstrap_dns.go``).
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import structlog
import trio

from relay.pages.page import Response
from relay.pages.paths import query_value

__all__ = ("BootstrapDns", "BootstrapDnsStatistics", "Resolver", "resolve")

log = structlog.get_logger("relay.pages")

REFRESH_INTERVAL: Final = 600.0
REFRESH_TIMEOUT: Final = 60.0  # of all names together

# bootstrap_dns.go: the set of names asked for is forgotten beyond this.
MAX_QUERIED: Final = 500

# Returns the addresses of a name as text, or raises OSError.
Resolver: TypeAlias = Callable[[str], Awaitable[list[str]]]


async def resolve(name: str) -> list[str]:
    """Ask the system for the IPv4 and IPv6 addresses of a name.

    Raises:
        OSError: There are none, or nobody knows.
    """
    found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(slots=True)
class BootstrapDnsStatistics:
    """Counters, by derper's names."""

    requests: int = 0
    published_hits: int = 0
    published_misses: int = 0
    unpublished_misses: int = 0
    queried: set[str] = field(default_factory=set)


class BootstrapDns:
    """The published names and their addresses.

    Args:
        names: What to publish; empty for nothing.
        resolver: Finds the addresses of one name.
        rng: Shuffles them, lest clients all take the first.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        resolver: Resolver = resolve,
        rng: random.Random | None = None,
    ) -> None:
        self._names = tuple(names)
        self._resolve = resolver
        self._rng = rng or random.Random()  # noqa: S311 -- no secret
        self._addresses: dict[str, list[str]] = {}
        self._body = b""
        self.statistics = BootstrapDnsStatistics()

    async def run(self) -> None:
        """Resolve the names now, and again every ten minutes."""
        while self._names:
            await self.refresh()
            await trio.sleep(REFRESH_INTERVAL)

    async def refresh(self) -> None:
        """Resolve all names; those that fail are left out this time."""
        found: dict[str, list[str]] = {}

        async def look_up(name: str) -> None:
            try:
                addresses = await self._resolve(name)
            except (OSError, UnicodeError) as exc:
                log.warning("bootstrap DNS lookup failed", name=name, error=str(exc))
            else:
                self._rng.shuffle(addresses)
                found[name] = addresses

        with trio.move_on_after(REFRESH_TIMEOUT) as scope:
            async with trio.open_nursery() as nursery:
                for name in self._names:
                    nursery.start_soon(look_up, name)
        if scope.cancelled_caught:
            late = sorted(set(self._names) - set(found))
            log.warning("bootstrap DNS lookups took too long", names=late)
        self._addresses = found
        # json.MarshalIndent of a map: keys sorted, and nil is null.
        text = json.dumps(found or None, indent="\t", sort_keys=True)
        self._body = text.encode()

    def answer(self, query: str, headers: tuple[tuple[str, str], ...]) -> Response:
        """Answer a request.

        Args:
            query: Of the request, raw. A name in ``q`` is but counted: what
                is published goes to everyone.
            headers: To be sent as well.
        """
        statistics = self.statistics
        statistics.requests += 1
        asked = query_value(query, "q")[:255]  # no name is longer
        if asked:
            statistics.queried.add(asked)
            if len(statistics.queried) > MAX_QUERIED:
                statistics.queried.clear()
            if asked not in self._addresses:
                statistics.unpublished_misses += 1
            elif self._addresses[asked]:
                statistics.published_hits += 1
            else:
                statistics.published_misses += 1
        # Asked seldom and from far away: derper does not keep the connection.
        return Response(
            200,
            (("Content-Type", "application/json"), *headers),
            self._body,
            close=True,
        )
