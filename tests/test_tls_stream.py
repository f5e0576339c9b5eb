"""TLS many records at a time, against trio's own TLS and the rules of streams."""

from __future__ import annotations

import ssl

import pytest
import trio
import trio.testing
import trustme

from tailnet.tls_stream import TlsStream
from tests.derp.memory_relay import MemoryStream

CA = trustme.CA()
LEAF = CA.issue_cert("derp.test")

Server = trio.SSLStream[MemoryStream]


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's."""
    client = ssl.create_default_context()
    CA.configure_trust(client)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    LEAF.configure_cert(server)
    return client, server


def make_pair() -> tuple[TlsStream, Server]:
    """Both ends, the handshake still to be done."""
    client, server = contexts()
    near, far = trio.testing.memory_stream_pair()
    return (
        TlsStream(near, client, server_hostname="derp.test"),
        trio.SSLStream(far, server, server_side=True, https_compatible=True),
    )


async def connected_pair() -> tuple[TlsStream, Server]:
    client, server = make_pair()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
    return client, server


async def test_it_is_a_stream() -> None:
    """trio's own checks of the contract: conflicts, closing, cancelling."""

    async def make() -> tuple[TlsStream, Server]:
        return await connected_pair()

    with trio.fail_after(30):
        await trio.testing.check_two_way_stream(make, None)


async def test_one_read_gives_all_records() -> None:
    client, server = await connected_pair()
    for number in range(20):
        await server.send_all(b"%02d" % number * 500)
    received = await client.receive_some()
    assert received == b"".join(b"%02d" % number * 500 for number in range(20))


async def test_no_more_than_was_asked_for() -> None:
    client, server = await connected_pair()
    await server.send_all(b"abcdefgh")
    await server.send_all(b"ij")
    assert await client.receive_some(3) == b"abc"
    assert await client.receive_some(100) == b"defghij"
    with pytest.raises(ValueError, match="at least 1"):
        await client.receive_some(0)


async def test_records_cut_anywhere() -> None:
    client, server = await connected_pair()
    inside = trio.testing.memory_stream_pair()
    raw, server.transport_stream.send_stream = inside[1], inside[0].send_stream
    await server.send_all(b"cut into pieces")
    wire = bytes(await raw.receive_some())
    far_side = client.transport
    assert isinstance(far_side, trio.StapledStream)
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            got.append(await client.receive_some())

        nursery.start_soon(receive)
        for byte in wire:
            far_side.receive_stream.put_data(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
    assert got == [b"cut into pieces"]


async def test_large_amounts_both_ways() -> None:
    client, server = await connected_pair()
    data = bytes(range(256)) * 4096  # 1 MiB
    got: dict[str, bytes] = {"client": b"", "server": b""}

    async def receive(name: str, stream: trio.abc.Stream) -> None:
        while len(got[name]) < len(data):
            got[name] += bytes(await stream.receive_some())

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, "client", client)
            nursery.start_soon(receive, "server", server)
            nursery.start_soon(client.send_all, data)
            nursery.start_soon(server.send_all, data)
    assert got == {"client": data, "server": data}


async def test_what_the_handshake_told() -> None:
    client, _ = await connected_pair()
    assert (client.version, client.alpn) == ("TLSv1.3", None)
    chain = client.peer_chain()
    assert chain == [
        ssl.PEM_cert_to_DER_cert(pem.bytes().decode()) for pem in LEAF.cert_chain_pems
    ]


@pytest.mark.parametrize("polite", [True, False])
async def test_the_end_of_the_data(polite: bool) -> None:
    client, server = await connected_pair()
    await server.send_all(b"last")
    if polite:
        await server.aclose()  # with close_notify
    else:
        await server.transport_stream.aclose()
    assert await client.receive_some() == b"last"
    assert await client.receive_some() == b""
    assert await client.receive_some() == b""


async def test_closing_says_good_bye() -> None:
    client, server = await connected_pair()
    await client.aclose()
    # Not https_compatible would do here: the end is announced.
    assert await server.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await client.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")


async def test_a_bad_record_after_good_ones() -> None:
    client, server = await connected_pair()
    await server.send_all(b"good")
    await server.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert await client.receive_some() == b"good"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.receive_some()
        assert isinstance(caught.value.__cause__, ssl.SSLError)


async def test_a_refusal_tells_the_server_why() -> None:
    client, server = make_pair()
    client = TlsStream(
        client.transport, ssl.create_default_context(), server_hostname="derp.test"
    )
    causes: dict[str, BaseException | None] = {}

    async def expect(name: str, stream: TlsStream | Server) -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
        causes[name] = caught.value.__cause__

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, "client", client)
            nursery.start_soon(expect, "server", server)
    assert isinstance(causes["client"], ssl.SSLCertVerificationError)
    assert "ALERT_UNKNOWN_CA" in str(causes["server"])


async def test_a_server_that_leaves_in_the_handshake() -> None:
    client, server = make_pair()
    await server.transport_stream.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await client.do_handshake()
