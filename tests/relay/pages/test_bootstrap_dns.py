from __future__ import annotations

import json
import random

import trio
import trio.testing

from relay.pages.bootstrap_dns import (
    MAX_QUERIED,
    REFRESH_INTERVAL,
    REFRESH_TIMEOUT,
    BootstrapDns,
    resolve,
)

HEADERS = (("X-Test", "1"),)


class Zone:
    """A resolver whose answers are in a dictionary."""

    def __init__(self, **addresses: list[str] | None) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    async def __call__(self, name: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        self.asked.append(name)
        found = self.addresses[name]
        if found is None:
            await trio.sleep_forever()
        if not found:
            raise OSError("Name or service not known")
        return list(found)


def body(dns: BootstrapDns, query: str = "") -> bytes:
    return dns.answer(query, HEADERS).body


async def test_layout_is_that_of_go() -> None:
    dns = BootstrapDns(["b", "a"], resolver=Zone(a=["192.0.2.1"], b=["2001:db8::1"]))
    await dns.refresh()
    response = dns.answer("", HEADERS)
    assert response.body == (
        b'{\n\t"a": [\n\t\t"192.0.2.1"\n\t],\n\t"b": [\n\t\t"2001:db8::1"\n\t]\n}'
    )
    assert response.headers == (("Content-Type", "application/json"), *HEADERS)
    assert response.close


async def test_empty_until_resolved_and_null_when_nothing_was() -> None:
    dns = BootstrapDns(["a"], resolver=Zone(a=[]))
    assert body(dns) == b""
    await dns.refresh()
    assert body(dns) == b"null"


async def test_names_are_refreshed_every_ten_minutes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    zone = Zone(a=["192.0.2.1"], b=["192.0.2.2"])
    dns = BootstrapDns(["a", "b"], resolver=zone)
    with trio.move_on_after(2.5 * REFRESH_INTERVAL):
        await dns.run()
    assert len(zone.asked) == 6


async def test_failing_name_is_left_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    zone = Zone(a=["192.0.2.1"], b=[])
    dns = BootstrapDns(["a", "b"], resolver=zone)
    await dns.refresh()
    assert json.loads(body(dns)) == {"a": ["192.0.2.1"]}


async def test_slow_name_delays_nothing_beyond_the_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    zone = Zone(a=["192.0.2.1"], b=None)
    dns = BootstrapDns(["b", "a"], resolver=zone)
    await dns.refresh()
    assert trio.current_time() == REFRESH_TIMEOUT
    assert json.loads(body(dns)) == {"a": ["192.0.2.1"]}


async def test_no_names_no_work() -> None:
    with trio.fail_after(1):
        await BootstrapDns([]).run()


async def test_addresses_are_shuffled() -> None:
    addresses = [f"192.0.2.{i}" for i in range(20)]
    dns = BootstrapDns(["a"], resolver=Zone(a=addresses), rng=random.Random(1))
    await dns.refresh()
    found = json.loads(body(dns))["a"]
    assert found != addresses
    assert sorted(found) == sorted(addresses)


async def test_queries_are_counted_and_get_everything() -> None:
    dns = BootstrapDns(["a"], resolver=Zone(a=["192.0.2.1"]))
    await dns.refresh()
    everything = body(dns)
    assert body(dns, "q=a") == everything
    assert body(dns, "q=secret.example&q=a") == everything
    statistics = dns.statistics
    assert statistics.requests == 3
    assert statistics.published_hits == 1
    assert statistics.unpublished_misses == 1
    assert statistics.queried == {"a", "secret.example"}


def test_names_asked_for_do_not_pile_up() -> None:
    dns = BootstrapDns([])
    for number in range(MAX_QUERIED):
        dns.answer(f"q={number}", ())
    assert len(dns.statistics.queried) == MAX_QUERIED
    dns.answer("q=" + "x" * 10_000, ())
    assert len(dns.statistics.queried) == 0


async def test_system_resolver_knows_addresses() -> None:
    # Numeric, so that no network is needed.
    assert await resolve("127.0.0.1") == ["127.0.0.1"]
    assert await resolve("::1") == ["::1"]
