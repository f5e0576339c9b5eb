"""STUN clients of three codecs ask the relay for their address.

Tailscale's own requests carry SOFTWARE ``tailnode`` and a FINGERPRINT, and
derper answers nothing else. Ours also answers ordinary RFC 8489 requests; the
tests say which is expected, so that they hold for derper too.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.interop.programs import ProgramError, clean_environment, run_program
from tests.interop.relay_program import Relay, RelayKind, Security, open_relay
from tests.interop.tools import (
    find_debian_tool,
    find_go_program,
    find_peers_python,
    needs,
)

AIOICE = Path(__file__).parents[1] / "peers" / "aioice" / "stun_request.py"
SUCCESS = 'stun_requests{disposition="success"}'
NOT_STUN = 'stun_requests{disposition="not_stun"}'


async def ask(
    folder: Path, *argv: str | Path, timeout: float = 10
) -> tuple[int, str, str]:
    """Run a STUN client; returns its status, output and log."""
    done = await run_program(
        *argv,
        folder=folder,
        timeout=timeout,
        env=clean_environment(folder.with_name("home")),
    )
    return done.returncode, done.stdout.decode(), done.log


async def check_refused(relay: Relay) -> None:
    """Nothing was answered; what came was counted."""
    counters = await relay.counters()
    assert counters[SUCCESS] == 0
    assert counters[NOT_STUN] >= 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "client"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_stunc_of_tailscale(host: str, tmp_path: Path, folder: Path) -> None:
    stunc = needs(find_go_program, "stunc")
    async with open_relay(tmp_path / "r", security=Security.PLAIN, host=host) as relay:
        status, output, log = await ask(folder, stunc, host, str(relay.stun_port))
        assert status == 0, log
        # Go prints its own IPv6 address in brackets.
        bracketed = re.escape(f"[{host}]" if ":" in host else host)
        assert re.search(rf"stun addr: {bracketed}:\d+", output + log)
        counters = await relay.counters()
        assert counters[SUCCESS] == 1
        family = "ipv6" if ":" in host else "ipv4"
        assert counters[f'stun_addrfamily{{family="{family}"}}'] == 1


@pytest.mark.parametrize("options", [(), ("fingerprint",)], ids=["bare", "fingerprint"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_aioice(
    host: str, options: tuple[str, ...], tmp_path: Path, folder: Path
) -> None:
    python = needs(find_peers_python)
    async with open_relay(tmp_path / "r", security=Security.PLAIN, host=host) as relay:
        status, output, log = await ask(
            folder, python, AIOICE, host, str(relay.stun_port), *options
        )
        if relay.kind is RelayKind.DERPER:
            assert "TimeoutError" in log
            await check_refused(relay)
        else:
            # The script compares the answer with its own socket.
            assert status == 0, log
            assert output.split()[0] == host
            assert (await relay.counters())[SUCCESS] == 1


async def test_turnutils_of_coturn(tmp_path: Path, folder: Path) -> None:
    client = needs(find_debian_tool, "turnutils_stunclient")
    async with open_relay(tmp_path / "r", security=Security.PLAIN) as relay:
        argv = (client, "-p", str(relay.stun_port), "127.0.0.1")
        if relay.kind is RelayKind.DERPER:
            with pytest.raises(ProgramError, match="still runs"):
                await ask(folder, *argv, timeout=2)
            await check_refused(relay)
        else:
            status, output, log = await ask(folder, *argv)
            assert status == 0, log
            assert re.search(r"UDP reflexive addr: 127\.0\.0\.1:\d+", output + log)


async def test_rfc3489_is_not_answered(tmp_path: Path, folder: Path) -> None:
    """No magic cookie: RFC 8489 section 6.3 tells it from STUN by that."""
    client = needs(find_debian_tool, "stun")
    async with open_relay(tmp_path / "r", security=Security.PLAIN) as relay:
        with pytest.raises(ProgramError, match="still runs"):
            await ask(folder, client, f"127.0.0.1:{relay.stun_port}", "1", timeout=2)
        await check_refused(relay)
