"""A client of one agent that says what it hears, until SIGTERM.

A program of its own, so that it can run in a network namespace. One word a
line: ``map:HOST:PORT``, or the kind of an update and the peer.
"""

from __future__ import annotations

import signal
import sys
from uuid import UUID, uuid4

import trio

from tailnet.sdk.controller import Tailnet, open_tailnet
from tests.interop.coder.nodes import make_node


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def follow_maps(tailnet: Tailnet) -> None:
    async for derp_map in tailnet.derp_maps():
        node = (derp_map.region(999).nodes or ())[0]
        say(f"map:{node.host_name}:{node.derp_port}")


async def follow_peers(tailnet: Tailnet) -> None:
    async for update in tailnet.peer_updates:
        say(f"{update.kind.name}:{update.peer_id}")


async def main(url: str, token: str, agent: str) -> None:
    agent_id = UUID(agent)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with (
            trio.open_nursery() as nursery,
            open_tailnet(url, token, agent_id) as tailnet,
        ):
            nursery.start_soon(follow_maps, tailnet)
            nursery.start_soon(follow_peers, tailnet)
            tailnet.add_tunnel(agent_id)
            tailnet.update_node(make_node(uuid4()))
            await anext(signals)


if __name__ == "__main__":
    given_url, given_token, given_agent = sys.argv[1:]
    trio.run(main, given_url, given_token, given_agent)
