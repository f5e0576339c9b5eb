"""slowhttptest drips HTTP heads at the relay, which must not wait for them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop.programs import clean_environment, run_program
from tests.interop.relay_program import RelayKind, Security, open_relay
from tests.interop.tools import find_debian_tool, needs

CONNECTIONS = 300
DEADLINE = 10  # seconds from accept to the end of the handshake


@pytest.mark.slow
@pytest.mark.skipif(
    RelayKind.from_environment() is RelayKind.DERPER,
    reason="derper gives a dripping client 30 s",
)
async def test_dripping_heads_are_cut_off(tmp_path: Path) -> None:
    slowhttptest = needs(find_debian_tool, "slowhttptest")
    folder = tmp_path / "slowhttptest"
    folder.mkdir()
    async with open_relay(tmp_path / "relay", security=Security.PLAIN) as relay:
        done = await run_program(
            slowhttptest,
            # Headers, one every 2 s, for longer than the deadline allows.
            *("-H", "-c", str(CONNECTIONS), "-r", "300", "-i", "2", "-x", "24"),
            *("-l", str(DEADLINE + 4), "-p", "2"),
            *("-u", f"http://{relay.host}:{relay.port}/derp"),
            folder=folder,
            timeout=DEADLINE + 20,
            env=clean_environment(tmp_path / "home"),
        )
        # It draws its table again each 5 s, in colour.
        text = re.sub(r"\x1b\[[\d;]*m", "", done.stdout.decode(errors="replace"))
        connected = re.findall(r"connected:\s+(\d+)", text)
        assert str(CONNECTIONS) in connected, text
        # All the while an ordinary request got its answer.
        assert set(re.findall(r"service available:\s+(\w+)", text)) == {"YES"}
        # It gave up because all of its connections were closed.
        ended = re.search(r"Test ended on (\d+)", text)
        assert ended is not None, text
        assert "No open connections left" in text
        assert int(ended[1]) <= DEADLINE + 2
