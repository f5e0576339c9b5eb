from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h11
import httpx2
import msgspec
import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import given, strategies as st

from relay.derpmaps.build import MapOptions
from relay.derpmaps.source import (
    CACHE_NAME,
    FETCH_TIMEOUT,
    MAX_MAP_LEN,
    FileSource,
    MapSource,
    UrlSource,
    decode_map_file,
    open_source,
)
from tailnet.derp.derpmap import DERPMap, DERPNode, DERPRegion, decode_derp_map
from tailnet.errors import ConfigError, DERPMapError

URL = "http://maps.example/derp.json"


def text_of(name: str) -> bytes:
    node = {"Name": name, "RegionID": 900, "HostName": "relay.example"}
    region = {"RegionID": 900, "RegionCode": "own", "Nodes": [node]}
    return json.dumps({"Regions": {"900": region}}).encode()


def node_name(derp_map: DERPMap | None) -> str:
    assert derp_map is not None
    nodes = derp_map.region(900).nodes
    assert nodes
    return nodes[0].name


async def inline(work: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return work()


# -- what a file may hold ---------------------------------------------------

EXPECTED = DERPMap(
    {
        900: DERPRegion(
            900,
            "no",
            "Own region",
            latitude=1.5,
            nodes=(
                DERPNode(
                    "900a", 900, "relay.example", stun_port=-1, insecure_for_tests=True
                ),
            ),
        )
    },
    omit_default_regions=True,
)

YAML = b"""
# A comment.
Regions:
  900:
    RegionID: 900
    RegionCode: no          # a boolean in YAML 1.1
    RegionName: Own region
    Latitude: 1.5
    Nodes:
      - {Name: 900a, RegionID: 900, HostName: relay.example, STUNPort: -1,
         InsecureForTests: true, IPv4: null}
omitDefaultRegions: true
"""

JSON = b"""{"Regions": {"900": {"RegionID": 900, "RegionCode": "no",
  "RegionName": "Own region", "Latitude": 1.5, "Nodes": [
    {"Name": "900a", "RegionID": 900, "HostName": "relay.example", "STUNPort": -1,
     "InsecureForTests": true}]}},
  "omitDefaultRegions": true}"""


@pytest.mark.parametrize("content", [YAML, JSON, YAML.replace(b"  900:", b'  "900":')])
def test_yaml_and_json_are_alike(content: bytes) -> None:
    assert decode_map_file(content) == EXPECTED


def test_yaml_aliases() -> None:
    text = b"""
Regions:
  1: {RegionID: 1, Nodes: &nodes []}
  2: {RegionID: 2, Nodes: *nodes}
"""
    made = decode_map_file(text)
    assert made.region(1).nodes == made.region(2).nodes == ()


LAUGHS = b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 10))
    for c in range(ord("b"), ord("k"))
)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no JSON object"),
        (b"[]", "no JSON object"),
        (b"just text", "no JSON object"),
        (b"a: b: c", "line 1"),
        (b"a: 1\nb: [", "line"),
        (b"\ta: 1", "not YAML"),
        (b"a: !!python/object:os.system {}", "not YAML"),
        (b"a: !!int x", "not YAML"),
        (b"a: !!bool x", "not YAML"),
        (b"a: !!timestamp x", "not YAML"),
        (b"a: !!set {x}", "a set"),
        (b"a: !!binary AAAA", "a bytes"),
        (b"a: \x00", "not YAML"),
        (b"a: \xff", "not YAML"),
        (b"? [1]\n: 2", "not YAML"),
        (b"1.5: 2", "1.5"),
        (b"true: 2", "True"),
        (b"<<: {Regions: {}}", "<<"),
        (b"a: &a [*a]", "too many values, or too deep"),
        (LAUGHS, "too many values, or too deep"),
        (b"[" * 2000, "not YAML"),
        (b"Regions: {900: {RegionID: x}}", "region 900: RegionID"),
        (b"Regions: {x: {RegionID: 1}}", "'x'"),
        (b"Regions: {900: {Nodes: [{Name: 5}]}}", "region 900, node 0: Name"),
        (b'{"Regions": {"900": {"Nodes": [{"DERPPort": "1"}]}}}', "node 0: DERPPort"),
        (b" " * (MAX_MAP_LEN + 1), "bytes"),
    ],
)
def test_what_is_no_map(content: bytes, word: str) -> None:
    with pytest.raises(DERPMapError) as caught:
        decode_map_file(content)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_by_its_name_is_not_tried_as_yaml() -> None:
    with pytest.raises(DERPMapError, match="not JSON"):
        decode_map_file(b"{'a': 1}", is_json=True)


YAML_ISH = st.lists(
    st.sampled_from(
        ["a", ":", " ", "\n", "-", "[", "]", "{", "}", "&a", "*a", "!!int ", "!!set ",
         "'", '"', "<<", "1", "1.5", "~", "true", "|", ">", "#", "%", "?", ",", "0x1"]
    ),
    max_size=25,
).map(lambda parts: "".join(parts).encode())  # fmt: skip


@given(content=st.binary(max_size=60) | YAML_ISH)
def test_any_bytes_are_a_map_or_a_derp_map_error(content: bytes) -> None:
    try:
        made = decode_map_file(content)
    except DERPMapError:
        return
    assert isinstance(made, DERPMap)


# -- files ------------------------------------------------------------------


def settled(path: Path, content: bytes, *, age: float = 60.0) -> None:
    """Write a file whose time stamp is too old for doubts."""
    path.write_bytes(content)
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))


async def test_file_is_read_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    source = FileSource(path)
    settled(path, text_of("a"))
    assert node_name(await source.fetch()) == "a"
    assert await source.fetch() is None
    settled(path, text_of("b"), age=50.0)
    assert node_name(await source.fetch()) == "b"
    # Another file of the same size and time: only the inode tells.
    stat = path.stat()
    (tmp_path / "new").write_bytes(text_of("c"))
    os.utime(tmp_path / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (tmp_path / "new").replace(path)
    assert node_name(await source.fetch()) == "c"
    # Another size alone.
    settled(path, text_of("dd"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert node_name(await source.fetch()) == "dd"
    # Touched, but the same.
    os.utime(path)
    assert await source.fetch() is None


async def test_change_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    source = FileSource(path)
    path.write_bytes(text_of("a"))
    stat = path.stat()
    assert node_name(await source.fetch()) == "a"
    with path.open("r+b") as file:
        file.write(text_of("b"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert node_name(await source.fetch()) == "b"


async def test_broken_file_is_an_error_once(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    source = FileSource(path)
    path.write_bytes(b"Regions: 5")
    with pytest.raises(DERPMapError, match="Regions"):
        await source.fetch()
    assert await source.fetch() is None
    path.write_bytes(text_of("a"))
    assert node_name(await source.fetch()) == "a"


async def test_file_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    source = FileSource(path)
    assert "map.json" in source.where
    for _ in range(2):
        with pytest.raises(ConfigError, match="No such file"):
            await source.fetch()
    settled(path, text_of("a"))
    assert node_name(await source.fetch()) == "a"
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        await source.fetch()
    settled(path, text_of("a"))
    assert await source.fetch() is None
    assert await source.recall() is None


async def test_file_with_too_much_in_it(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(text_of("a").ljust(MAX_MAP_LEN + 1))
    with pytest.raises(DERPMapError, match="bytes"):
        await FileSource(path).fetch()
    with pytest.raises(ConfigError, match="directory"):
        await FileSource(tmp_path).fetch()


# -- URLs -------------------------------------------------------------------

Answer = Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]]


def answering(*answers: httpx2.Response) -> Answer:
    """One answer after the other, the last one for ever."""
    rest = list(answers)

    async def answer(_request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        return rest.pop(0) if len(rest) > 1 else rest[0]

    return answer


@asynccontextmanager
async def url_source(
    answer: Answer, folder: Path, *, url: str = URL
) -> AsyncIterator[UrlSource]:
    async with httpx2.AsyncClient(
        transport=httpx2.MockTransport(answer), follow_redirects=True, timeout=None
    ) as client:
        yield UrlSource(client, url, folder / CACHE_NAME, run_sync=inline)


def ok(content: bytes, **headers: str) -> httpx2.Response:
    return httpx2.Response(200, content=content, headers=headers)


async def test_url_is_asked_with_the_validators_of_its_answer(tmp_path: Path) -> None:
    asked: list[tuple[str | None, str | None]] = []
    answers = answering(
        httpx2.Response(
            200,
            content=text_of("a"),
            headers={"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
        ),
        httpx2.Response(304),
        ok(text_of("b")),
        ok(text_of("b")),
    )

    async def answer(request: httpx2.Request) -> httpx2.Response:
        headers = request.headers
        asked.append((headers.get("If-None-Match"), headers.get("If-Modified-Since")))
        return await answers(request)

    async with url_source(answer, tmp_path) as source:
        assert node_name(await source.fetch()) == "a"
        assert await source.fetch() is None
        assert node_name(await source.fetch()) == "b"
        assert await source.fetch() is None
    stamp = ('"1"', "Mon, 01 Jan 2024 00:00:00 GMT")
    assert asked == [(None, None), stamp, stamp, (None, None)]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (httpx2.Response(404), "404 Not Found"),
        (httpx2.Response(500, content=text_of("a")), "500"),
        (httpx2.Response(204), "204"),
        (httpx2.Response(304), "304"),
        (ok(text_of("a").ljust(MAX_MAP_LEN + 1)), str(MAX_MAP_LEN)),
        (httpx2.Response(302, headers={"Location": "ftp://x/"}), "no answer"),
        (httpx2.Response(302, headers={"Location": URL}), "no answer"),
    ],
)
async def test_answer_that_is_no_answer(
    tmp_path: Path, answer: httpx2.Response, word: str
) -> None:
    async with url_source(answering(answer), tmp_path) as source:
        for _ in range(2):
            with pytest.raises(ConfigError, match=word):
                await source.fetch()


async def test_packed_answer_is_not_unpacked(tmp_path: Path) -> None:
    async def answer(_request: httpx2.Request) -> httpx2.Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"\x1f\x8b not looked at"

        return httpx2.Response(
            200, content=body(), headers={"Content-Encoding": "gzip"}
        )

    async with url_source(answer, tmp_path) as source:
        with pytest.raises(ConfigError, match="gzip"):
            await source.fetch()


@pytest.mark.parametrize("content", [b"", b"<html>", YAML, b'{"Regions":5}', b"\xff"])
async def test_garbage_is_an_error_once(tmp_path: Path, content: bytes) -> None:
    answers = answering(ok(content), ok(content), ok(text_of("a")))
    async with url_source(answers, tmp_path) as source:
        with pytest.raises(DERPMapError):
            await source.fetch()
        assert await source.fetch() is None
        assert node_name(await source.fetch()) == "a"


async def test_silence_ends(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def answer(_request: httpx2.Request) -> httpx2.Response:
        await trio.sleep_forever()
        raise AssertionError

    async with url_source(answer, tmp_path) as source:
        with pytest.raises(ConfigError, match="10 s"):
            await source.fetch()
    assert trio.current_time() == FETCH_TIMEOUT


async def test_dripping_answer_ends(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def answer(_request: httpx2.Request) -> httpx2.Response:
        async def drip() -> AsyncIterator[bytes]:
            while True:
                yield b" "
                await trio.sleep(1)

        return httpx2.Response(200, content=drip())

    async with url_source(answer, tmp_path) as source:
        with pytest.raises(ConfigError, match="10 s"):
            await source.fetch()
    assert trio.current_time() <= FETCH_TIMEOUT + 1


async def test_last_good_answer_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    async with url_source(answering(ok(text_of("a"))), folder) as source:
        assert await source.recall() is None
        await source.fetch()
        await source.keep()
    assert (folder / CACHE_NAME).stat().st_mode & 0o777 == 0o600

    async with url_source(answering(ok(text_of("a"))), folder) as source:
        assert node_name(await source.recall()) == "a"
        # What comes when the URL is back is no change.
        assert await source.fetch() is None
    async with url_source(answering(ok(b"")), folder, url=URL + "?x") as source:
        assert await source.recall() is None


def test_kept_answer_on_disk() -> None:
    """The file outlives the program, so its form does not change unnoticed."""
    kept = {"version": 1, "url": URL, "fetched_at": 1, "body": text_of("a")}
    assert msgspec.msgpack.encode(kept) == bytes.fromhex(
        "84"
        "a7 76657273696f6e 01"  # version
        f"a3 75726c {0xA0 + len(URL):x} {URL.encode().hex()}"
        "aa 666574636865645f6174 01"  # fetched_at
        f"a4 626f6479 c4 {len(text_of('a')):02x} {text_of('a').hex()}"
    )


async def test_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    kept = {"version": 1, "url": URL, "fetched_at": 1, "body": text_of("a"), "new": 2}
    (tmp_path / CACHE_NAME).write_bytes(msgspec.msgpack.encode(kept))
    async with url_source(answering(httpx2.Response(500)), tmp_path) as source:
        assert node_name(await source.recall()) == "a"
    kept["version"] = 2
    (tmp_path / CACHE_NAME).write_bytes(msgspec.msgpack.encode(kept))
    async with url_source(answering(httpx2.Response(500)), tmp_path) as source:
        assert await source.recall() is None


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", b"\x81" * 5000, b"{}"])
async def test_kept_answer_that_is_broken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CACHE_NAME).write_bytes(content)
    async with url_source(answering(ok(text_of("a"))), tmp_path) as source:
        with pytest.raises(DERPMapError, match="broken"):
            await source.recall()


async def test_answer_that_cannot_be_kept_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with url_source(answering(ok(text_of("a"))), tmp_path / "file") as source:
        await source.fetch()
        with structlog.testing.capture_logs() as lines:
            await source.keep()
            await source.keep()
    [line] = lines
    assert line["log_level"] == "warning"


async def test_messages_show_no_secrets(tmp_path: Path) -> None:
    async with url_source(
        answering(httpx2.Response(500)),
        tmp_path,
        url="http://user:hidden@maps.example:8080/x?key=hidden",
    ) as source:
        assert source.where == '--derp-config-url "http://maps.example:8080/x"'
        with pytest.raises(ConfigError) as caught:
            await source.fetch()
        assert "hidden" not in str(caught.value)


# -- a URL over real sockets ------------------------------------------------


class Site:
    """An HTTP server whose answers a test sets."""

    def __init__(self) -> None:
        self.answer = b""
        self.then_wait = False
        self.paths: list[str] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        async with stream:
            while (event := connection.next_event()) is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            if isinstance(event, h11.Request):
                self.paths.append(event.target.decode())
                answer = self.answer
                if event.target == b"/moved":
                    answer = b"HTTP/1.1 302 Found\r\nLocation: /there\r\n\r\n"
                try:
                    await stream.send_all(answer)
                except trio.BrokenResourceError:
                    return  # it was too much
                if self.then_wait:
                    await trio.sleep_forever()


def http_ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def test_url_down_up_garbage_oversized_slow_and_moved(tmp_path: Path) -> None:
    site = Site()
    with trio.fail_after(60):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        options = MapOptions(config_url=f"http://127.0.0.1:{port}/moved")
        async with (
            open_source(options, data_dir=tmp_path) as source,
            trio.open_nursery() as nursery,
        ):
            assert isinstance(source, UrlSource)
            # The site is up.
            site.answer = http_ok(text_of("a"))
            scope = trio.CancelScope()

            async def run(listener: trio.SocketListener) -> None:
                with scope:
                    await trio.serve_listeners(site.serve, [listener])

            nursery.start_soon(run, listener)
            assert node_name(await source.fetch()) == "a"
            assert site.paths == ["/moved", "/there"]
            await source.keep()
            # Garbage.
            site.answer = b"garbage\r\n\r\n"
            await fails(source, "no answer")
            site.answer = http_ok(b"<html>")
            with pytest.raises(DERPMapError, match="not JSON"):
                await source.fetch()
            # Too much, told in advance or not.
            site.answer = http_ok(b" " * (MAX_MAP_LEN + 1))
            await fails(source, "over")
            site.answer = b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (MAX_MAP_LEN + 1)
            await fails(source, "over")
            # Half of it.
            site.answer = http_ok(text_of("b"))[:-5]
            await fails(source, "no answer")
            # Too slow.
            site.then_wait = True
            async with httpx2.AsyncClient(timeout=None) as client:
                slow = UrlSource(
                    client, f"http://127.0.0.1:{port}/", tmp_path / "x", timeout=0.1
                )
                await fails(slow, r"no answer in 0\.1 s")
            site.then_wait = False
            # Down.
            scope.cancel()
            await listener.aclose()
            await fails(source, "no answer")
            assert node_name(await source.recall()) == "a"


async def fails(source: MapSource, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        await source.fetch()
    assert "\n" not in str(caught.value)


async def test_source_by_options(tmp_path: Path) -> None:
    async with open_source(MapOptions(), data_dir=tmp_path) as none:
        assert none is None
    path = tmp_path / "map"
    path.write_bytes(text_of("a"))
    async with open_source(
        MapOptions(config_path=str(path)), data_dir=tmp_path
    ) as source:
        assert isinstance(source, FileSource)
        assert await source.fetch() == decode_derp_map(text_of("a"))
        await source.keep()
