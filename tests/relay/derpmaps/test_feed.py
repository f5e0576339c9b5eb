from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog.testing
import trio
import trio.testing

from relay.derpmaps.build import AccessUrl, MapOptions, build_derp_map
from relay.derpmaps.feed import DerpMapFeed, _first_map, open_derp_map_feed
from relay.derpmaps.source import CACHE_NAME, FileSource, MapSource, UrlSource
from tailnet.derp.derpmap import DERPMap, decode_derp_map, encode_derp_map
from tailnet.errors import ConfigError, DERPMapError

ACCESS_URL = AccessUrl("http", "127.0.0.1", 3000)
URL = "http://maps.example/derp.json"

# What peers may wait for a change at most.
PROMISE = 5.0


def text_of(name: str, **fields: Any) -> bytes:
    node = {"Name": name, "RegionID": 900, "HostName": "relay.example", **fields}
    region = {"RegionID": 900, "RegionCode": "own", "Nodes": [node]}
    return json.dumps({"Regions": {"900": region}}).encode()


def node_name(derp_map: DERPMap) -> str:
    nodes = derp_map.region(900).nodes
    assert nodes
    return nodes[0].name


def build(custom: DERPMap | None) -> DERPMap:
    return build_derp_map(MapOptions(), access_url=ACCESS_URL, custom=custom)


class Place:
    """A source that a test fills."""

    where = "the place"
    interval = 1.0

    def __init__(self, now: bytes | Exception | None = None) -> None:
        self.now = now
        self.kept: list[str] = []
        self.cached: bytes | None = None
        self.looks: list[float] = []
        self._last: bytes | None = None

    async def fetch(self) -> DERPMap | None:
        await trio.lowlevel.checkpoint()
        self.looks.append(trio.current_time())
        if isinstance(self.now, Exception):
            raise self.now
        if self.now is None or self.now == self._last:
            return None
        self._last = self.now
        return decode_derp_map(self.now)

    async def keep(self) -> None:
        await trio.lowlevel.checkpoint()
        assert self._last is not None
        self.kept.append(node_name(decode_derp_map(self._last)))

    async def recall(self) -> DERPMap | None:
        await trio.lowlevel.checkpoint()
        return None if self.cached is None else decode_derp_map(self.cached)


@asynccontextmanager
async def running(source: MapSource | None) -> AsyncIterator[DerpMapFeed]:
    feed = DerpMapFeed(await _first_map(source, build), source, build)
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.run)
            yield feed
            nursery.cancel_scope.cancel()


async def next_name(feed: DerpMapFeed, seen: DERPMap) -> tuple[str, float]:
    """The next map's node, and after how long it came."""
    start = trio.current_time()
    changed = await feed.wait_change(seen)
    assert changed is feed.current
    return node_name(changed), trio.current_time() - start


async def assert_no_change(feed: DerpMapFeed, seen: DERPMap) -> None:
    with trio.move_on_after(60) as scope:
        await feed.wait_change(seen)
    assert scope.cancelled_caught


async def test_change_wakes_all_who_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place(text_of("a"))
    async with running(place) as feed:
        first = feed.current
        assert node_name(first) == "a"
        assert first.region(999).embedded_relay
        got: list[tuple[str, float]] = []

        async def wait() -> None:
            got.append(await next_name(feed, first))

        async with trio.open_nursery() as waiters:
            for _ in range(3):
                waiters.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            place.now = text_of("b")
        assert got == [("b", 1.0)] * 3
        # Who saw the one before does not wait at all.
        assert await next_name(feed, first) == ("b", 0.0)
        await trio.sleep(0.5)  # who waits comes first, then the disk
        assert place.kept == ["a", "b"]


async def test_slow_reader_skips_maps(autojump_clock: trio.testing.MockClock) -> None:
    place = Place(text_of("a"))
    async with running(place) as feed:
        first = feed.current
        for name in "bcd":
            place.now = text_of(name)
            await trio.sleep(2)
        assert await next_name(feed, first) == ("d", 0.0)
        # And back again: what was seen is current.
        place.now = text_of("a")
        await trio.sleep(2)
        await assert_no_change(feed, first)


async def test_small_change_wakes_nobody_but_is_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place(text_of("a"))
    async with running(place) as feed:
        first = feed.current
        assert feed.encoded() == encode_derp_map(first)
        place.now = text_of("a", CanPort80=True)
        await assert_no_change(feed, first)
        assert feed.current != first
        assert b'"CanPort80":true' in feed.encoded()
        # It does not hide a change after it.
        place.now = text_of("b")
        assert (await next_name(feed, first))[0] == "b"


@pytest.mark.parametrize(
    "broken",
    [
        b"<html>",
        b"{}",
        b'{"Regions":{"900":{"RegionID":900,"Nodes":[{"Name":"x"}]}}}',
        b'{"Regions":{"999":{"RegionID":999,"Nodes":[]}}}',
    ],
)
async def test_broken_version_is_one_line_and_the_old_map_stays(
    broken: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    place = Place(text_of("a"))
    async with running(place) as feed:
        first = feed.current
        with structlog.testing.capture_logs() as lines:
            place.now = broken
            await assert_no_change(feed, first)
            assert feed.current is first
        [line] = lines
        assert line["log_level"] == "error"
        assert line["source"] == "the place"
        assert line["reason"]
        assert place.kept == ["a"]
        with structlog.testing.capture_logs() as lines:
            place.now = text_of("a")
            await assert_no_change(feed, first)
        assert [line["event"] for line in lines] == ["a new DERP map is in use"]


async def test_outage_is_one_line_and_its_end_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    place = Place(text_of("a"))
    async with running(place) as feed:
        first = feed.current
        with structlog.testing.capture_logs() as lines:
            place.now = ConfigError("no answer")
            await assert_no_change(feed, first)
            place.now = text_of("a")
            await assert_no_change(feed, first)
            place.now = ConfigError("no answer")
            await trio.sleep(3)
            place.now = text_of("b")
            assert (await next_name(feed, first))[0] == "b"
        assert [line["log_level"] for line in lines] == [
            "error", "info", "error", "info", "info"
        ]  # fmt: skip


async def test_bytes_are_made_once(autojump_clock: trio.testing.MockClock) -> None:
    made: list[str] = []

    def encode(derp_map: DERPMap) -> bytes:
        made.append(node_name(derp_map))
        return made[-1].encode()

    place = Place(text_of("a"))
    async with running(place) as feed:
        first = feed.current
        assert feed.encoded(encode) is feed.encoded(encode)
        assert feed.encoded() is feed.encoded()
        assert json.loads(feed.encoded())["Regions"]["900"]
        place.now = text_of("b")
        await feed.wait_change(first)
        assert feed.encoded(encode) == b"b"
    assert made == ["a", "b"]


async def test_reload_looks_at_once(autojump_clock: trio.testing.MockClock) -> None:
    place = Place(text_of("a"))
    place.interval = 1e6
    async with running(place) as feed:
        await trio.sleep(0.5)
        assert place.looks == [0.0]
        feed.reload()
        await trio.sleep(5)
        assert place.looks == [0.0, 0.5]


async def test_without_a_source_nothing_ever_comes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running(None) as feed:
        feed.reload()
        assert set(feed.current.regions or ()) == {999}
        await assert_no_change(feed, feed.current)


# -- the first map ----------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (ConfigError("no answer: refused"), ["the place", "refused"]),
        (b"<html>", ["the place", "not JSON"]),
        (b'{"Regions":{"999":{"RegionID":999}}}', ["the place", "region 999"]),
    ],
)
async def test_start_without_a_map(now: bytes | Exception, words: list[str]) -> None:
    place = Place(now)
    with pytest.raises(ConfigError) as caught:
        await _first_map(place, build)
    assert all(word in str(caught.value) for word in words)
    # With the map of an earlier run it starts all the same.
    place = Place(now)
    place.cached = text_of("old")
    with structlog.testing.capture_logs() as lines:
        assert node_name(await _first_map(place, build)) == "old"
    [line] = lines
    assert line["log_level"] == "warning"
    assert place.kept == []
    # Not if that one is broken too.
    place = Place(now)
    place.cached = b"{}"
    with pytest.raises(ConfigError, match="earlier run"):
        await _first_map(place, build)


# -- the promise of 5 s, with the sources themselves --------------------------


async def inline(work: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return work()


async def test_file_change_arrives_in_time(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "map.yaml"
    path.write_bytes(text_of("a"))
    async with running(FileSource(path, run_sync=inline)) as feed:
        for name in ("b", "c"):
            await trio.sleep(10.3)
            seen = feed.current
            path.write_bytes(text_of(name))
            got, delay = await next_name(feed, seen)
            assert got == name
            assert delay < PROMISE
        # Half of a file, the rest a moment later.
        seen = feed.current
        with structlog.testing.capture_logs() as lines:
            path.write_bytes(text_of("d")[:50])
            await trio.sleep(2)
            path.write_bytes(text_of("d"))
            assert (await next_name(feed, seen))[0] == "d"
        assert [line["log_level"] for line in lines] == ["error", "info"]
        # Away, and another in its place.
        seen = feed.current
        path.unlink()
        await assert_no_change(feed, seen)
        path.write_bytes(text_of("e"))
        got, delay = await next_name(feed, seen)
        assert got == "e"
        assert delay < PROMISE


async def test_url_change_arrives_in_time(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    answer: list[bytes | None] = [text_of("a")]

    async def respond(request: httpx2.Request) -> httpx2.Response:
        await trio.sleep(0.5)
        body = answer[0]
        if body is None:
            raise httpx2.ConnectError("refused")
        return httpx2.Response(200, content=body)

    async with httpx2.AsyncClient(
        transport=httpx2.MockTransport(respond), timeout=None
    ) as client:
        cache = tmp_path / CACHE_NAME

        def source() -> UrlSource:
            return UrlSource(client, URL, cache, run_sync=inline)

        async with running(source()) as feed:
            await trio.sleep(10.3)
            seen = feed.current
            answer[0] = text_of("b")
            got, delay = await next_name(feed, seen)
            assert got == "b"
            assert delay < PROMISE
            await trio.sleep(1)  # who waits comes first, then the disk
        # Down at the next start; then it comes back, the same and later newer.
        answer[0] = None
        async with running(source()) as feed:
            seen = feed.current
            assert node_name(seen) == "b"
            await assert_no_change(feed, seen)
            answer[0] = text_of("b")
            await assert_no_change(feed, seen)
            answer[0] = text_of("c")
            got, delay = await next_name(feed, seen)
            assert got == "c"
            assert delay < PROMISE


async def test_whole_feed_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(text_of("a"))
    options = MapOptions(config_path=str(path))
    with trio.fail_after(60):
        async with (
            open_derp_map_feed(
                options, access_url=ACCESS_URL, stun_port=3478, data_dir=tmp_path
            ) as feed,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(feed.run)
            seen = feed.current
            [node] = seen.region(999).nodes or ()
            assert node.stun_port == 3478
            path.write_bytes(text_of("b"))
            feed.reload()
            assert node_name(await feed.wait_change(seen)) == "b"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["--derp-config-path", "map.json", "No such file"]),
        (b"{}", ["--derp-config-path", "map.json", "Regions"]),
        (text_of("a", DERPPort=-1), ["map.json", "region 900", "node a", "DERPPort"]),
        # 1e999 is no number that JSON can hold, but one that Python reads.
        (
            text_of("a").replace(
                b"{", b'{"HomeParams":{"RegionScore":{"1":1e999}},', 1
            ),
            ["map.json"],
        ),
    ],
)
async def test_file_that_is_wrong_at_the_start(
    tmp_path: Path, content: bytes | None, words: list[str]
) -> None:
    path = tmp_path / "map.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        async with open_derp_map_feed(
            MapOptions(config_path=str(path)),
            access_url=ACCESS_URL,
            stun_port=None,
            data_dir=tmp_path,
        ):
            raise AssertionError
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


async def test_settings_without_a_relay(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no DERP node"):
        async with open_derp_map_feed(
            MapOptions(serve_embedded=False),
            access_url=ACCESS_URL,
            stun_port=None,
            data_dir=tmp_path,
        ):
            raise AssertionError


async def test_what_the_builder_refuses_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def refuse(custom: DERPMap | None) -> DERPMap:
        raise DERPMapError("region 1: no")

    place = Place(text_of("a"))
    with pytest.raises(ConfigError, match="the place: region 1: no"):
        await _first_map(place, refuse)
