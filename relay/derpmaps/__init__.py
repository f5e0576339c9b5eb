"""The DERP map that the server gives out: built, loaded, kept up to date."""

from __future__ import annotations

from relay.derpmaps.build import AccessUrl, MapOptions, build_derp_map
from relay.derpmaps.feed import DerpMapFeed, open_derp_map_feed

__all__ = (
    "AccessUrl",
    "DerpMapFeed",
    "MapOptions",
    "build_derp_map",
    "open_derp_map_feed",
)
