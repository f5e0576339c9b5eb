"""Which addresses are dialed, in which order, and whom TLS accepts."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from tailnet.derp.derpmap import DERPNode
from tailnet.derp.dial import (
    TlsFacts,
    derp_port,
    dial_node,
    dial_region,
    start_tls,
)
from tailnet.errors import ConnectError
from tests.derp.make_certificates import (
    KEY_PEM,
    make_certificate,
    make_meta_certificate,
)
from tests.derp.memory_relay import RELAY_KEY

NODE = DERPNode(name="1a", region_id=1, host_name="derp.test")
V4, V6 = socket.AF_INET, socket.AF_INET6


@dataclass
class Network:
    """Connects after as many seconds as it is told, or fails.

    A negative number of seconds is that of a failure; what is not listed
    never answers.
    """

    delays: Mapping[str, float]
    dialed: list[tuple[float, str, int, socket.AddressFamily]] = field(
        default_factory=list
    )
    open: dict[str, trio.testing.MemorySendStream] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)

    async def connect(
        self, host: str, port: int, family: socket.AddressFamily
    ) -> trio.abc.Stream:
        self.dialed.append((trio.current_time(), host, port, family))
        key = host if host in self.delays else f"{host}/{4 if family == V4 else 6}"
        delay = self.delays.get(key)
        if delay is None:
            await trio.sleep_forever()
        await trio.sleep(abs(delay))
        if delay < 0:
            raise ConnectionRefusedError(f"{key} refused")
        near, _ = trio.testing.memory_stream_pair()
        near.send_stream.close_hook = lambda: self.closed.append(key)
        self.open[key] = near.send_stream
        return near


def opened(network: Network, stream: trio.abc.Stream) -> str:
    """Which of the network's connections ``stream`` is."""
    assert isinstance(stream, trio.StapledStream)
    return next(k for k, send in network.open.items() if send is stream.send_stream)


async def test_both_families_race(autojump_clock: trio.testing.MockClock) -> None:
    network = Network({"derp.test/4": 0.3, "derp.test/6": 0.2})
    dialed = await dial_node(NODE, connect=network.connect)
    assert network.dialed == [(0, "derp.test", 443, V4), (0, "derp.test", 443, V6)] or (
        network.dialed == [(0, "derp.test", 443, V6), (0, "derp.test", 443, V4)]
    )
    assert opened(network, dialed.stream) == "derp.test/6"
    assert trio.current_time() == 0.2


async def test_a_tie_leaves_one_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network({"derp.test/4": 0.2, "derp.test/6": 0.2})
    dialed = await dial_node(NODE, connect=network.connect)
    won = opened(network, dialed.stream)
    assert network.closed == [key for key in network.open if key != won]


async def test_ipv4_waits_where_ipv6_is_known_to_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network({"derp.test/4": 0.01, "derp.test/6": 0.1})
    dialed = await dial_node(NODE, prefer_ipv6=True, connect=network.connect)
    assert opened(network, dialed.stream) == "derp.test/6"
    assert network.dialed == [(0, "derp.test", 443, V6)]


async def test_ipv4_that_waited_still_wins_if_ipv6_is_silent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network({"derp.test/4": 0.01})
    dialed = await dial_node(NODE, prefer_ipv6=True, connect=network.connect)
    assert opened(network, dialed.stream) == "derp.test/4"
    assert trio.current_time() == pytest.approx(0.21)


async def test_ipv4_alone_does_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network({"derp.test": 0.0})
    await dial_node(
        replace(NODE, ipv6="none"), prefer_ipv6=True, connect=network.connect
    )
    assert trio.current_time() == 0.0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {("derp.test", V4), ("derp.test", V6)}),
        ({"ipv4": "192.0.2.1"}, {("192.0.2.1", V4), ("derp.test", V6)}),
        ({"ipv6": "2001:db8::1"}, {("derp.test", V4), ("2001:db8::1", V6)}),
        ({"ipv4": "192.0.2.1", "ipv6": "none"}, {("192.0.2.1", V4)}),
        ({"ipv4": "none"}, {("derp.test", V6)}),
        ({"ipv4": "2001:db8::1"}, {("derp.test", V6)}),  # no IPv4 address
        ({"host_name": "192.0.2.7"}, {("192.0.2.7", V4)}),
        ({"host_name": "2001:db8::7"}, {("2001:db8::7", V6)}),
        ({"host_name": "192.0.2.7", "ipv4": "none"}, set()),
        ({"ipv4": "none", "ipv6": "-"}, set()),
    ],
)
async def test_address_fields(
    fields: dict[str, str],
    expected: set[tuple[str, socket.AddressFamily]],
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network({})
    message = "within 1.5 s" if expected else "disabled"
    with pytest.raises(ConnectError, match=message):
        await dial_node(replace(NODE, **fields), connect=network.connect)  # type: ignore[arg-type]
    assert {(host, family) for _, host, _, family in network.dialed} == expected
    assert trio.current_time() == (1.5 if expected else 0)


def test_port() -> None:
    assert derp_port(NODE) == 443
    assert derp_port(replace(NODE, derp_port=3340)) == 3340


async def test_all_refused_tells_of_the_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network({"derp.test/4": -0.2, "derp.test/6": -0.1})
    with pytest.raises(ConnectError, match=r"1a: derp\.test/6 refused"):
        await dial_node(NODE, connect=network.connect)
    assert trio.current_time() == 0.2


async def test_a_winner_is_closed_if_nobody_wants_it_any_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network({"derp.test": 0.2})
    with trio.move_on_after(0.2) as scope:
        await dial_node(replace(NODE, ipv6="none"), connect=network.connect)
    assert scope.cancelled_caught
    assert list(network.open) == network.closed


async def test_nodes_are_tried_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    nodes = [
        replace(NODE, name="1a", host_name="stun.test", stun_only=True),
        replace(NODE, name="1b", host_name="silent.test"),
        replace(NODE, name="1c", host_name="refuses.test"),
        replace(NODE, name="1d", host_name="good.test", derp_port=8443, ipv6="none"),
        replace(NODE, name="1e", host_name="better.test"),
    ]
    network = Network({"refuses.test": -0.1, "good.test": 0.1, "better.test": 0.0})
    dialed = await dial_region(nodes, connect=network.connect)
    assert dialed.node is nodes[3]
    assert opened(network, dialed.stream) == "good.test"
    assert network.dialed[-1][1:] == ("good.test", 8443, V4)
    assert "stun.test" not in {host for _, host, _, _ in network.dialed}
    assert trio.current_time() == pytest.approx(1.5 + 0.1 + 0.1)


async def test_no_node_answers(autojump_clock: trio.testing.MockClock) -> None:
    nodes = [
        replace(NODE, name="1a", host_name="refuses.test"),
        replace(NODE, name="1b", host_name="silent.test"),
    ]
    network = Network({"refuses.test": -0.1})
    with pytest.raises(ConnectError, match=r"1a: refuses\.test refused"):
        await dial_region(nodes, connect=network.connect)
    with pytest.raises(ConnectError, match="no node that relays"):
        await dial_region([replace(NODE, stun_only=True)], connect=network.connect)


# -- TLS, over memory streams -----------------------------------------------


CA = trustme.CA()


def server_context(cert: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    cert.configure_cert(context)
    return context


def context_of(chain: list[bytes], tmp_path: Path) -> ssl.SSLContext:
    """A server with self-made certificates in DER; the first one's key fits."""
    file = tmp_path / "chain.pem"
    pems = [ssl.DER_cert_to_PEM_cert(der) for der in chain]
    file.write_text(KEY_PEM.decode() + "".join(pems))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    return context


def trusting(ca: trustme.CA = CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


@dataclass
class Seen:
    """What the server has learned."""

    sni: str | None = None
    done: bool = False


@asynccontextmanager
async def serving(
    context: ssl.SSLContext,
) -> AsyncIterator[tuple[trio.abc.Stream, Seen]]:
    """The client's end of a stream to a TLS server, and what that saw."""
    seen = Seen()

    def note(
        _object: ssl.SSLObject, name: str | None, _context: ssl.SSLContext
    ) -> None:
        seen.sni = name

    context.sni_callback = note
    near, far = trio.testing.memory_stream_pair()

    async def serve() -> None:
        tls = trio.SSLStream(far, context, server_side=True, https_compatible=True)
        try:
            await tls.do_handshake()
            seen.done = True
            await tls.receive_some()
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(tls)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield near, seen
            # The server's part of the handshake ends after the client's.
            await trio.testing.wait_all_tasks_blocked()
            await trio.aclose_forcefully(near)


async def test_a_certificate_for_the_host_name() -> None:
    async with serving(server_context(CA.issue_cert("derp.test"))) as (stream, seen):
        _, facts = await start_tls(stream, NODE, context=trusting())
        assert facts == TlsFacts("TLSv1.3", alpn=None, server_key=None)
    assert seen == Seen(sni="derp.test", done=True)


@pytest.mark.parametrize(
    ("name", "trust", "problem"),
    [
        ("other.test", CA, "Hostname mismatch"),
        ("derp.test", trustme.CA(), "unable to get local issuer"),
    ],
)
async def test_a_wrong_certificate(name: str, trust: trustme.CA, problem: str) -> None:
    async with serving(server_context(CA.issue_cert(name))) as (stream, _):
        with pytest.raises(ConnectError, match=f"1a: TLS failed: .*{problem}"):
            await start_tls(stream, NODE, context=trusting(trust))
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_the_system_does_not_know_our_ca() -> None:
    async with serving(server_context(CA.issue_cert("derp.test"))) as (stream, _):
        with pytest.raises(ConnectError, match="TLS failed"):
            await start_tls(stream, NODE)


async def test_an_insecure_node_takes_any_certificate() -> None:
    node = replace(NODE, insecure_for_tests=True)
    async with serving(server_context(CA.issue_cert("other.test"))) as (stream, seen):
        await start_tls(stream, node)
    assert seen == Seen(sni="derp.test", done=True)


async def test_an_address_is_verified_and_not_asked_for() -> None:
    node = replace(NODE, host_name="192.0.2.1")
    async with serving(server_context(CA.issue_cert("192.0.2.1"))) as (stream, seen):
        await start_tls(stream, node, context=trusting())
    assert seen == Seen(sni=None, done=True)
    async with serving(server_context(CA.issue_cert("192.0.2.2"))) as (stream, _):
        with pytest.raises(ConnectError, match="IP address mismatch"):
            await start_tls(stream, node, context=trusting())


async def test_another_certificate_name_with_the_host_name_in_front() -> None:
    """Domain fronting: SNI says one name, the certificate another."""
    node = replace(NODE, host_name="front.test", cert_name="derp.test")
    async with serving(server_context(CA.issue_cert("derp.test"))) as (stream, seen):
        await start_tls(stream, node, context=trusting())
    assert seen == Seen(sni="front.test", done=True)
    async with serving(server_context(CA.issue_cert("front.test"))) as (stream, _):
        with pytest.raises(ConnectError, match=r"valid for front\.test, not for derp"):
            await start_tls(stream, node, context=trusting())
    # Nor will any root do, even if the node is insecure otherwise (as in Go).
    node = replace(node, insecure_for_tests=True)
    async with serving(server_context(CA.issue_cert("derp.test"))) as (stream, _):
        with pytest.raises(ConnectError, match="TLS failed"):
            await start_tls(stream, node, context=trusting(trustme.CA()))


async def test_a_certificate_name_that_is_the_host_name_changes_nothing() -> None:
    node = replace(NODE, cert_name="derp.test")
    async with serving(server_context(CA.issue_cert("derp.test"))) as (stream, _):
        await start_tls(stream, node, context=trusting())


def pin_of(cert: trustme.LeafCert) -> str:
    der = load_pem_x509_certificate(cert.cert_chain_pems[0].bytes()).public_bytes(
        Encoding.DER
    )
    return "sha256-raw:" + hashlib.sha256(der).hexdigest()


async def test_a_pinned_certificate_needs_no_root() -> None:
    cert = CA.issue_cert("derp.test")
    node = replace(NODE, cert_name=pin_of(cert))
    async with serving(server_context(cert)) as (stream, seen):
        await start_tls(stream, node)
    assert seen == Seen(sni="derp.test", done=True)


async def test_a_pin_holds_even_for_an_insecure_node() -> None:
    node = replace(
        NODE, cert_name=pin_of(CA.issue_cert("derp.test")), insecure_for_tests=True
    )
    async with serving(server_context(CA.issue_cert("derp.test"))) as (stream, _):
        with pytest.raises(ConnectError, match=r"1a: .*not the pinned one"):
            await start_tls(stream, node)


async def test_a_pinned_certificate_of_yesterday(tmp_path: Path) -> None:
    now = load_pem_x509_certificate(
        CA.cert_pem.bytes()
    ).not_valid_before_utc  # long ago
    old = make_certificate(
        dns_names=["derp.test"], start=now, end=now + timedelta(days=1)
    )
    pin = "sha256-raw:" + hashlib.sha256(old).hexdigest()
    async with serving(context_of([old], tmp_path)) as (stream, _):
        with pytest.raises(ConnectError, match="1a: the pinned certificate ended"):
            await start_tls(stream, replace(NODE, cert_name=pin))


async def test_the_meta_certificate_is_found_behind_the_leaf(tmp_path: Path) -> None:
    chain = [make_certificate(), make_meta_certificate(RELAY_KEY.public())]
    node = replace(NODE, insecure_for_tests=True)
    async with serving(context_of(chain, tmp_path)) as (stream, _):
        _, facts = await start_tls(stream, node)
    assert facts.server_key == RELAY_KEY.public()


async def test_under_tls_1_2_the_meta_certificate_means_nothing(
    tmp_path: Path,
) -> None:
    chain = [make_certificate(), make_meta_certificate(RELAY_KEY.public())]
    context = context_of(chain, tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(context) as (stream, _):
        _, facts = await start_tls(stream, replace(NODE, insecure_for_tests=True))
    assert facts == TlsFacts("TLSv1.2")


async def test_no_alpn_is_offered_unless_the_context_does() -> None:
    server = server_context(CA.issue_cert("derp.test"))
    server.set_alpn_protocols(["h2", "http/1.1"])
    client = trusting()
    async with serving(server) as (stream, _):
        _, facts = await start_tls(stream, NODE, context=client)
        assert facts.alpn is None
    client.set_alpn_protocols(["h2"])
    async with serving(server) as (stream, _):
        _, facts = await start_tls(stream, NODE, context=client)
        assert facts.alpn == "h2"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_peer_without_tls(answer: bytes) -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(answer)
    await far.send_eof()
    with pytest.raises(ConnectError, match="1a: TLS failed: "):
        await start_tls(near, NODE)
