"""Where a custom DERP map comes from: a file, or a URL.

A file is JSON or YAML, with the names of JSON; what a URL answers is JSON.
Both are asked again and again, cheaply: a file by its status, a URL with the
validators of its last answer (RFC 9110 section 13). What a URL answered last
is kept on disk, so that a start does not depend on another server.

API: :func:`open_source`, which gives a :class:`MapSource` or None.
"""

from __future__ import annotations

import os
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import httpx2
import msgpack
import msgspec
import structlog
import trio
import yaml

from relay.derpmaps.build import MapOptions
from relay.keyfile import write_atomically
from tailnet.derp.derpmap import DERPMap, decode_derp_map
from tailnet.errors import ConfigError, DERPMapError

__all__ = (
    "CACHE_NAME",
    "FETCH_TIMEOUT",
    "FILE_INTERVAL",
    "MAX_MAP_LEN",
    "URL_INTERVAL",
    "FileSource",
    "MapSource",
    "UrlSource",
    "decode_map_file",
    "open_source",
)

log = structlog.get_logger("relay.derpmaps")

# Ours. Tailscale's own map is 24 KiB.
MAX_MAP_LEN: Final = 1 << 20

# A change has to be with every peer within 5 s of Coder's
# DERPMapUpdateFrequency, so both are below it.
FILE_INTERVAL: Final = 1.0
URL_INTERVAL: Final = 3.0

# For a whole answer, redirects included.
FETCH_TIMEOUT: Final = 10.0

# Of net/http's default client.
MAX_REDIRECTS: Final = 10

# In the data directory.
CACHE_NAME: Final = "derp-map.msgpack"
CACHE_VERSION: Final = 1

# A file may change again within one tick of the clock that stamps it, and
# look the same. 2 s is the coarsest clock there is (FAT).
STAMP_RESOLUTION: Final = 2.0

T = TypeVar("T")
# As trio.to_thread.run_sync, for work that blocks.
RunSync = Callable[[Callable[[], T]], Awaitable[T]]


class MapSource(Protocol):
    """A place that a custom map comes from."""

    @property
    def where(self) -> str:
        """The place in words, for messages."""
        ...

    @property
    def interval(self) -> float:
        """Seconds between two looks at it."""
        ...

    async def fetch(self) -> DERPMap | None:
        """Look at it.

        Returns:
            The map, or None if it is as it was at the last look.

        Raises:
            ConfigError: It cannot be had right now.
            DERPMapError: What is there is no DERP map. The next look returns
                None if it is still the same.
        """
        ...

    async def keep(self) -> None:
        """Remember for bad times the map that the last ``fetch`` returned."""
        ...

    async def recall(self) -> DERPMap | None:
        """The map that was kept last, maybe by an earlier run.

        Raises:
            DERPMapError: It is no DERP map.
        """
        ...


@asynccontextmanager
async def open_source(
    options: MapOptions,
    *,
    data_dir: Path,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> AsyncIterator[MapSource | None]:
    """Open what the settings name.

    Args:
        options: The settings.
        data_dir: Where to keep what a URL answered.
        transport: In place of the network, for tests. The proxies that the
            environment names are used otherwise.
    """
    if options.config_path:
        yield FileSource(Path(options.config_path))
    elif options.config_url:
        async with httpx2.AsyncClient(
            transport=transport,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            timeout=None,  # one deadline of ours covers it all
            # What is not packed cannot unpack to more than was allowed.
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        ) as client:
            yield UrlSource(client, options.config_url, data_dir / CACHE_NAME)
    else:
        yield None


class FileSource:
    """A file, in JSON or YAML."""

    interval = FILE_INTERVAL

    def __init__(
        self, path: Path, *, run_sync: RunSync[Any] = trio.to_thread.run_sync
    ) -> None:
        self.where = f'--derp-config-path "{path}"'
        self._path = path
        self._run_sync = run_sync
        self._stamp: tuple[int, ...] | None = None
        self._content: bytes | None = None

    async def fetch(self) -> DERPMap | None:
        found: DERPMap | None = await self._run_sync(self._fetch)
        return found

    def _fetch(self) -> DERPMap | None:
        try:
            status = os.stat(self._path)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
            if stamp == self._stamp:
                return None
            with self._path.open("rb") as file:
                content = file.read(MAX_MAP_LEN + 1)
        except (OSError, ValueError) as exc:  # a NUL in the path
            self._stamp = None
            reason = getattr(exc, "strerror", None) or str(exc)
            raise ConfigError(f"cannot be read: {reason}") from exc
        is_settled = time.time() - status.st_mtime > STAMP_RESOLUTION
        self._stamp = stamp if is_settled else None
        if content == self._content:
            return None
        self._content = content
        return decode_map_file(content, is_json=self._path.suffix == ".json")

    async def keep(self) -> None:
        """Nothing to do: the file keeps itself."""

    async def recall(self) -> DERPMap | None:
        return None


class UrlSource:
    """A URL that answers with JSON, and the file with its last good answer.

    Args:
        client: Asks.
        url: To be asked.
        cache: The file.
        timeout: Seconds for an answer.
        run_sync: For work with the file.
    """

    interval = URL_INTERVAL

    def __init__(
        self,
        client: httpx2.AsyncClient,
        url: str,
        cache: Path,
        *,
        timeout: float = FETCH_TIMEOUT,
        run_sync: RunSync[Any] = trio.to_thread.run_sync,
    ) -> None:
        self.where = f'--derp-config-url "{_without_secrets(url)}"'
        self._client = client
        self._url = url
        self._cache = cache
        self._timeout = timeout
        self._run_sync = run_sync
        self._body: bytes | None = None
        self._validators: dict[str, str] = {}
        self._may_write = True

    async def fetch(self) -> DERPMap | None:
        with trio.move_on_after(self._timeout) as scope:
            try:
                body = await self._ask()
            except (
                httpx2.HTTPError,
                httpx2.InvalidURL,
                httpx2.StreamError,
                OSError,
            ) as exc:
                raise ConfigError(f"no answer: {_one_line(exc)}") from exc
        if scope.cancelled_caught:
            raise ConfigError(f"no answer in {self._timeout:g} s")
        if body is None or body == self._body:
            return None
        self._body = body
        return decode_derp_map(body)

    async def _ask(self) -> bytes | None:
        """The body of the answer; None if it has not changed."""
        request = self._client.build_request("GET", self._url, headers=self._validators)
        response = await self._client.send(request, stream=True)
        try:
            if response.status_code == 304 and self._validators:
                return None
            if response.status_code != 200:
                status = f"{response.status_code} {response.reason_phrase}".strip()
                raise ConfigError(f"the answer is {status}")
            coding = response.headers.get("Content-Encoding", "identity")
            if coding.lower() != "identity":
                raise ConfigError(f"the answer is packed by {coding!r}, unasked")
            body = await _read(response)
        finally:
            with trio.move_on_after(1, shield=True):
                await response.aclose()
        self._validators = {
            condition: value
            for condition, name in _CONDITIONS
            if (value := response.headers.get(name))
        }
        return body

    async def keep(self) -> None:
        assert self._body is not None
        kept = _Kept(CACHE_VERSION, self._url, int(time.time()), self._body)
        content = msgpack.packb(msgspec.structs.asdict(kept))

        def write() -> None:
            self._cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A URL may hold a secret.
            write_atomically(self._cache, content, mode=0o600)

        try:
            await self._run_sync(write)
        except OSError as exc:
            if self._may_write:  # it is said once
                reason = exc.strerror or str(exc)
                log.warning(
                    "the DERP map cannot be kept", file=str(self._cache), reason=reason
                )
            self._may_write = False
        else:
            self._may_write = True

    async def recall(self) -> DERPMap | None:
        try:
            packed: bytes = await self._run_sync(self._cache.read_bytes)
        except OSError:
            return None
        try:
            kept = msgspec.convert(msgpack.unpackb(packed), _Kept)
        except (msgspec.ValidationError, ValueError, RecursionError) as exc:
            raise DERPMapError(f"{self._cache} is broken: {_one_line(exc)}") from exc
        if kept.version != CACHE_VERSION or kept.url != self._url:
            return None
        self._body, self._validators = kept.body, {}
        return decode_derp_map(kept.body)


async def _read(response: httpx2.Response) -> bytes:
    length = response.headers.get("Content-Length", "")
    is_too_long = length.isdigit() and int(length) > MAX_MAP_LEN
    body = b""
    try:
        async with aclosing(response.aiter_bytes()) as chunks:
            async for chunk in chunks:
                body += chunk
                if is_too_long or len(body) > MAX_MAP_LEN:
                    # To break out would leave the generators within this one
                    # to the garbage collector. Closed, they end by themselves.
                    is_too_long, body = True, b""
                    await response.aclose()
    except httpx2.HTTPError:
        if not is_too_long:
            raise
    if is_too_long:
        raise ConfigError(f"the answer is over {MAX_MAP_LEN} bytes")
    return body


_CONDITIONS: Final = (
    ("If-None-Match", "ETag"),
    ("If-Modified-Since", "Last-Modified"),
)


class _Kept(msgspec.Struct):
    """What the cache file holds, as MessagePack."""

    version: int
    url: str
    fetched_at: int
    body: bytes


def _without_secrets(url: str) -> str:
    """A URL for messages: neither user and password, nor the query."""
    parts = urllib.parse.urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, netloc, parts.path, "", ""))


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__


# -- files ------------------------------------------------------------------


def decode_map_file(content: bytes, *, is_json: bool = False) -> DERPMap:
    """Read a map from JSON or YAML.

    Args:
        content: UTF-8.
        is_json: It is not YAML for sure.

    Raises:
        DERPMapError: Neither of them, or no map; the message names the line,
            or the region and field.
    """
    if len(content) > MAX_MAP_LEN:
        raise DERPMapError(f"it has over {MAX_MAP_LEN} bytes")
    if not is_json:
        try:
            msgspec.json.decode(content)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            content = _yaml_to_json(content)
    return decode_derp_map(content)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with the values of JSON.

    YAML 1.1 takes the region code ``no`` for a boolean and ``2024-01-01`` for
    a date; the core schema of YAML 1.2 (section 10.3) does not.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"0|[-+]?[1-9][0-9]*", "+-0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?", "+-.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), list(_first)
    )

# Aliases make much of little: a file of 1 MiB can stand for more values than
# there is memory.
_MAX_VALUES: Final = 100_000
_MAX_DEPTH: Final = 50


def _yaml_to_json(content: bytes) -> bytes:
    try:
        parsed = yaml.load(content.decode(), Loader=_Loader)  # noqa: S506
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = "" if mark is None else f"line {mark.line + 1}: "
        problem = exc.problem or exc.context or "it is broken"
        raise DERPMapError(f"the DERP map is not YAML: {line}{problem}") from exc
    # PyYAML lets these through for tags like !!int on what is no number.
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as exc:
        raise DERPMapError(f"the DERP map is not YAML: {_one_line(exc)}") from exc
    budget = iter(range(_MAX_VALUES))
    return msgspec.json.encode(_as_json(parsed, budget, _MAX_DEPTH))


def _as_json(value: object, budget: Iterator[int], depth: int) -> object:
    if next(budget, None) is None or not depth:
        raise DERPMapError("the DERP map has too many values, or too deep ones")
    match value:
        case dict():
            return {
                _as_key(key): _as_json(item, budget, depth - 1)
                for key, item in value.items()
            }
        case list():
            return [_as_json(item, budget, depth - 1) for item in value]
        case None | bool() | int() | float() | str():
            return value
        case _:
            raise DERPMapError(f"the DERP map has a {type(value).__name__} in it")


def _as_key(key: object) -> str:
    if key == "<<":
        raise DERPMapError("the DERP map merges mappings (<<): write them out")
    if isinstance(key, str) or type(key) is int:
        return str(key)
    raise DERPMapError(f"the DERP map has the key {key!r}, which is no text")
