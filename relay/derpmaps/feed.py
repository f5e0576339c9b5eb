"""The DERP map of now, and who waits for the next one.

The map is built once from the settings and, if there is one, the custom map.
A task looks at the place of the custom map; a new version that makes a good
map replaces the old one and wakes who waits, any other leaves the old one in
use and is one line in the log.

API: :func:`open_derp_map_feed`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from relay.derpmaps.build import (
    AccessUrl,
    MapOptions,
    build_derp_map,
    is_same_for_clients,
)
from relay.derpmaps.source import MapSource, open_source
from tailnet.derp.derpmap import DERPMap, encode_derp_map
from tailnet.errors import ConfigError, DERPMapError, LocalProtocolError

__all__ = ("DerpMapFeed", "open_derp_map_feed")

log = structlog.get_logger("relay.derpmaps")

# From a custom map, or None, to the whole one; raises DERPMapError.
Build = Callable[[DERPMap | None], DERPMap]
Encode = Callable[[DERPMap], bytes]


@asynccontextmanager
async def open_derp_map_feed(
    options: MapOptions,
    *,
    access_url: AccessUrl,
    stun_port: int | None,
    data_dir: Path,
) -> AsyncIterator[DerpMapFeed]:
    """Build or load the map to begin with.

    New ones come while somebody runs :meth:`DerpMapFeed.run`, within the body.

    Args:
        options: What the settings say about the map.
        access_url: Where the embedded relay is reached.
        stun_port: Where this server answers STUN, or None.
        data_dir: Where to keep what a URL answered.

    Raises:
        ConfigError: There is no usable map to begin with; the message names
            the setting, the region and the field.
    """

    def build(custom: DERPMap | None) -> DERPMap:
        built = build_derp_map(
            options, access_url=access_url, stun_port=stun_port, custom=custom
        )
        try:
            encode_derp_map(built)
        except LocalProtocolError as exc:
            raise DERPMapError(str(exc)) from exc
        return built

    async with open_source(options, data_dir=data_dir) as source:
        yield DerpMapFeed(await _first_map(source, build), source, build)


async def _first_map(source: MapSource | None, build: Build) -> DERPMap:
    if source is None:
        try:
            return build(None)
        except DERPMapError as exc:
            raise ConfigError(str(exc)) from exc
    try:
        first = build(await source.fetch())
    except (ConfigError, DERPMapError) as exc:
        return await _kept_map(source, build, f"{source.where}: {exc}")
    await source.keep()
    return first


async def _kept_map(source: MapSource, build: Build, reason: str) -> DERPMap:
    """The map of an earlier run, since that of today cannot be had."""
    try:
        recalled = await source.recall()
        if recalled is None:
            raise ConfigError(reason)
        kept = build(recalled)
    except DERPMapError as exc:
        raise ConfigError(f"{reason}; of an earlier run: {exc}") from exc
    log.warning("the DERP map of an earlier run is used", reason=reason)
    return kept


class DerpMapFeed:
    """The map of now.

    Args:
        first: The map to begin with.
        source: Where newer ones come from, or None.
        build: Makes the whole map from a custom one.
    """

    def __init__(self, first: DERPMap, source: MapSource | None, build: Build) -> None:
        self._current = first
        self._source = source
        self._build = build
        self._encoded: dict[Encode, bytes] = {}
        self._compared: tuple[DERPMap, DERPMap, bool] = (first, first, True)
        self._changed = trio.Event()
        self._wanted = trio.Event()
        self._is_down = False
        self._is_broken = False

    @property
    def current(self) -> DERPMap:
        """The map to give to who asks now."""
        return self._current

    def encoded(self, encode: Encode = encode_derp_map) -> bytes:
        """The bytes of the current map, made once for all who ask.

        Args:
            encode: Makes them, by default as JSON. The same object each time.
        """
        found = self._encoded.get(encode)
        if found is None:
            found = self._encoded[encode] = encode(self._current)
        return found

    async def wait_change(self, seen: DERPMap) -> DERPMap:
        """Wait until the current map is not the one that was seen.

        Changes of HomeParams and CanPort80 alone do not count. Who is slow
        skips the maps in between. The current map is returned, so that
        :meth:`encoded` goes with it until the next checkpoint.
        """
        while self._is_current(seen):
            await self._changed.wait()
        return self._current

    def _is_current(self, seen: DERPMap) -> bool:
        if seen is self._current:
            return True
        # Most of those who wait have seen the same map.
        one, other, answer = self._compared
        if one is not seen or other is not self._current:
            answer = is_same_for_clients(seen, self._current)
            self._compared = (seen, self._current, answer)
        return answer

    def reload(self) -> None:
        """Look for a new map at once, not only when it is time."""
        self._wanted.set()

    async def run(self) -> None:
        """Look for new maps for ever."""
        if self._source is None:
            await trio.sleep_forever()
            return
        while True:
            with trio.move_on_after(self._source.interval):
                await self._wanted.wait()
            self._wanted = trio.Event()
            await self._look(self._source)

    async def _look(self, source: MapSource) -> None:
        try:
            custom = await source.fetch()
        except ConfigError as exc:
            if not self._is_down:  # it is said once
                log.error(
                    "no new DERP map; the old one stays in use",
                    source=source.where,
                    reason=str(exc),
                )
            self._is_down = True
            return
        except DERPMapError as exc:
            self._note_broken(source, exc)
            return
        if self._is_down:
            self._is_down = False
            log.info("the DERP map can be had again", source=source.where)
        if custom is None:
            return
        try:
            built = self._build(custom)
        except DERPMapError as exc:
            self._note_broken(source, exc)
            return
        self._publish(built, source)
        await source.keep()

    def _note_broken(self, source: MapSource, exc: DERPMapError) -> None:
        self._is_down = False
        self._is_broken = True
        log.error(
            "a broken DERP map; the old one stays in use",
            source=source.where,
            reason=str(exc),
        )

    def _publish(self, built: DERPMap, source: MapSource) -> None:
        is_change = not is_same_for_clients(built, self._current)
        self._current = built
        self._encoded.clear()
        if is_change or self._is_broken:
            log.info("a new DERP map is in use", source=source.where)
        self._is_broken = False
        if is_change:
            self._changed.set()
            self._changed = trio.Event()
