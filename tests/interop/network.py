"""Network namespaces for real programs: a world without the machine's own network.

Three of them: A and B each have one cable to R, and R has the relay on an
address of its own. Whether R forwards packets between A and B decides which
paths there are::

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.interop.tools import find_debian_tool, needs, needs_root

__all__ = ("HOST_A", "HOST_B", "RELAY", "Network", "open_network")

HOST_A: Final = "198.51.100.2"
HOST_B: Final = "198.51.100.6"
RELAY: Final = "198.51.100.9"


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
                # No link-local IPv6 address: it comes a second or two after
                # the link, and clients take that for a change of network,
                # on which they dial their relays anew (magicsock, Rebind).
                network.run(*on, "link", "set", link, "addrgenmode", "none")
                network.run(*on, "address", "add", f"{address}/30", "dev", link)
                network.run(*on, "link", "set", link, "up")
            network.run(ip, "-n", name, "route", "add", "default", "via", near)
        yield network
    finally:
        for name in made:
            network.run(ip, "netns", "delete", name)
