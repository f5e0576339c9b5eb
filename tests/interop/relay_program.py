"""A relay as a program of its own: ours, or the real derper.

Both take the same flags, so that each scenario can run against both: ours is
what the tests are about, derper shows that a scenario asks nothing of a relay
that Tailscale's own does not give. ``TAILNET_INTEROP_RELAY=derper`` turns all
of ``tests/interop`` over to it.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import http.client
import json
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio
import trustme

from tests.interop.programs import (
    POLL,
    Program,
    clean_environment,
    free_port,
    open_program,
)
from tests.interop.tools import find_go_program

__all__ = (
    "Counters",
    "Relay",
    "RelayKind",
    "Security",
    "careless_tls",
    "derp_map_of",
    "open_relay",
    "wait_listening",
)

ROOT: Final = Path(__file__).resolve().parents[2]
REGION: Final = 900
START_TIMEOUT: Final = 30.0  # seconds; the machine may be busy


class RelayKind(enum.Enum):
    OURS = "ours"
    DERPER = "derper"

    @classmethod
    def from_environment(cls) -> RelayKind:
        return cls(os.environ.get("TAILNET_INTEROP_RELAY", "ours"))


class Security(enum.Enum):
    """How a client knows that it talks to the right relay."""

    PLAIN = "plain HTTP"
    PINNED = "self-signed, pinned by hash"
    CA = "a certificate authority of our own"


class Counters(dict[str, float]):
    """What ``/debug/varz`` said: ``name`` or ``name{label="value"}`` -> value."""

    @classmethod
    def parse(cls, text: str) -> Counters:
        counters = cls()
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                counters[name] = float(value)
        return counters

    def matching(self, prefix: str) -> dict[str, float]:
        """The counters whose name begins so, by the rest of the name."""
        return {
            name.removeprefix(prefix): value
            for name, value in self.items()
            if name.startswith(prefix)
        }


@dataclass(slots=True)
class Relay:
    """A relay that runs.

    Attributes:
        kind: Whose.
        security: What stands between a client and it.
        program: Its process and log.
        host: IP address it listens on.
        port: TCP port of DERP.
        stun_port: UDP port of STUN.
        hostname: Its name, as in its certificate.
        folder: Key file and certificates.
    """

    kind: RelayKind
    security: Security
    program: Program
    host: str
    port: int
    stun_port: int
    hostname: str
    folder: Path
    _tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def ca_file(self) -> Path:
        """Certificate authority of the relay (Security.CA only)."""
        return self.folder / "ca.pem"

    def leaf_sha256(self) -> str:
        """Hash of the relay's own certificate, as CertName wants it."""
        # cert.go: an IPv6 address loses its colons.
        name = self.hostname.replace(":", "")
        crt = self.folder / "certs" / f"{name}.crt"
        pem = crt.read_text(encoding="ascii")
        end = "-----END CERTIFICATE-----"
        leaf = pem[: pem.index(end) + len(end)]
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(leaf)).hexdigest()

    def node(self) -> dict[str, object]:
        """The DERPNode by which clients find this relay."""
        v6 = ":" in self.host
        node: dict[str, object] = {
            "Name": f"{REGION}a",
            "RegionID": REGION,
            "HostName": self.hostname,
            "IPv4": "none" if v6 else self.host,
            "IPv6": self.host if v6 else "none",
            "STUNPort": self.stun_port,
            "DERPPort": self.port,
        }
        if self.security is Security.PINNED:
            node["CertName"] = f"sha256-raw:{self.leaf_sha256()}"
        return node

    def derp_map(self, **changes: object) -> bytes:
        """A DERP map with this relay alone; ``changes`` go into its node."""
        return derp_map_of({**self.node(), **changes})

    async def get(self, path: str) -> tuple[int, bytes]:
        """GET a page of the relay; returns status and body."""
        return await trio.to_thread.run_sync(self._get, path)

    async def counters(self) -> Counters:
        status, body = await self.get("/debug/varz")
        if status != 200:
            raise self.program.error(f"answered /debug/varz with {status}")
        return Counters.parse(body.decode())

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        with contextlib.closing(connection):
            sock = socket.create_connection((self.host, self.port), timeout=10)
            if self.security is not Security.PLAIN:
                # Who it is matters to the clients under test, not here; but a
                # relay with a DNS name answers to that name only.
                tls = self._tls = self._tls or careless_tls()
                sock = tls.wrap_socket(sock, server_hostname=self.hostname)
            connection.sock = sock
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read()


def derp_map_of(node: Mapping[str, object]) -> bytes:
    """A DERP map with one region and one node."""
    region = {
        "RegionID": REGION,
        "RegionCode": "test",
        "RegionName": "Test",
        "Nodes": [node],
    }
    return json.dumps({"Regions": {str(REGION): region}}).encode()


def careless_tls() -> ssl.SSLContext:
    """TLS that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.asynccontextmanager
async def open_relay(
    folder: Path,
    *,
    kind: RelayKind | None = None,
    security: Security = Security.PINNED,
    host: str = "127.0.0.1",
    port: int | None = None,
    stun_port: int | None = None,
    listen: str | None = None,
    flags: tuple[str, ...] = (),
    wrapper: tuple[str | Path, ...] = (),
) -> AsyncIterator[Relay]:
    """Run a relay while the block runs.

    Args:
        folder: Where its key and certificates are, or are made. A relay in
            the same folder and on the same port is the same relay again.
        kind: Whose relay; None for what the environment says.
        security: What stands between a client and it.
        host: IP address that clients use.
        port: TCP port; None for a free one.
        stun_port: UDP port; None for the same number as ``port``.
        listen: What to listen on in place of ``host``; empty for everything.
        flags: Further flags.
        wrapper: A command that runs the relay, such as ``ip netns exec``.
    """
    kind = kind or RelayKind.from_environment()
    port = port or free_port(host)
    stun_port = stun_port or port
    hostname = "derp.test" if security is Security.CA else host
    certs = folder / "certs"
    certs.mkdir(parents=True, exist_ok=True)
    if security is Security.CA and not (folder / "ca.pem").exists():
        _issue_certificate(folder, hostname)
    listen = host if listen is None else listen
    bracketed = f"[{listen}]" if ":" in listen else listen
    program: tuple[str | Path, ...] = (sys.executable, "-m", "relay")
    environment = dict(os.environ)
    if kind is RelayKind.DERPER:
        program = (find_go_program("derper"),)
        environment = clean_environment(folder / "home")
    argv: tuple[str | Path, ...] = (
        *wrapper,
        *program,
        *("-a", f"{bracketed}:{port}"),
        *("-c", folder / "relay.json"),
        *("-http-port", "-1"),
        *("-stun-port", str(stun_port)),
        *flags,
    )
    if security is not Security.PLAIN:
        argv += ("-certmode", "manual", "-certdir", certs, "-hostname", hostname)
    async with open_program(
        *argv,
        log_file=folder / "relay.log",
        env=environment,
        cwd=ROOT,
        name=f"relay ({kind.value})",
    ) as running:
        relay = Relay(kind, security, running, host, port, stun_port, hostname, folder)
        if kind is RelayKind.OURS:
            await running.wait_log(r"tailnet-relay ready", timeout=START_TIMEOUT)
        else:
            await running.wait_log(r"derper: serving on", timeout=START_TIMEOUT)
            if security is Security.PINNED:
                # It makes its certificate only after that line.
                await running.wait_log("sha256-raw:", timeout=START_TIMEOUT)
            if not wrapper:
                await wait_listening(relay)
        yield relay


async def wait_listening(relay: Relay) -> None:
    """Wait for derper's socket: it says "serving" just before it listens."""
    with trio.fail_after(START_TIMEOUT):
        while True:
            try:
                stream = await trio.open_tcp_stream(relay.host, relay.port)
            except OSError:
                await trio.sleep(POLL)
            else:
                await stream.aclose()
                return


def _issue_certificate(folder: Path, hostname: str) -> None:
    """Make an authority and a certificate of it for ``hostname``."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    leaf = authority.issue_cert(hostname)
    leaf.private_key_pem.write_to_path(folder / "certs" / f"{hostname}.key")
    crt = folder / "certs" / f"{hostname}.crt"
    for number, pem in enumerate(leaf.cert_chain_pems):
        pem.write_to_path(crt, append=number > 0)
