"""Whoever hears of DERP maps, until SIGTERM: an SDK client, and the v1 feed.

A program of its own, so that it can run in a network namespace. One JSON
object a line: ``event`` is ``sdk`` or ``v1``, ``ports`` has a port of each
region by its id.
"""

from __future__ import annotations

import json
import signal
import sys
from uuid import UUID

import trio
import trio_websocket

from tailnet.derp.derpmap import DERPMap, decode_derp_map
from tailnet.sdk.controller import open_tailnet


def say(event: str, derp_map: DERPMap) -> None:
    regions = derp_map.regions or {}
    ports = {
        region_id: node.derp_port
        for region_id, region in regions.items()
        for node in (region.nodes if region else None) or ()
    }
    sys.stdout.write(json.dumps({"event": event, "ports": ports}) + "\n")
    sys.stdout.flush()


async def follow_sdk(url: str, token: str, agent: UUID) -> None:
    async with open_tailnet(url, token, agent) as tailnet:
        async for derp_map in tailnet.derp_maps():
            say("sdk", derp_map)


async def follow_v1(url: str) -> None:
    feed = url.replace("http", "ws", 1) + "/api/v2/derp-map"
    async with trio_websocket.open_websocket_url(feed) as websocket:
        while True:
            message = await websocket.get_message()
            assert isinstance(message, bytes)
            say("v1", decode_derp_map(message))


async def main(url: str, token: str, agent: str) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_sdk, url, token, UUID(agent))
            nursery.start_soon(follow_v1, url)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    given_url, given_token, given_agent = sys.argv[1:]
    trio.run(main, given_url, given_token, given_agent)
