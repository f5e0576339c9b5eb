"""Both ends of a DERP connection, on a wire made of bytes."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, strategies as st

from tailnet.derp.connection import (
    CLIENT_BODY_SIZES,
    CLIENT_TRANSITIONS,
    SERVER_TRANSITIONS,
    ClientConnection,
    ClientHello,
    ServerConnection,
    ServerGreeting,
    State,
    Step,
    encode_client_frame,
    encode_server_frame,
)
from tailnet.derp.frames import (
    FRAME_HEADER,
    MAGIC,
    MAX_BODY_LEN,
    MAX_PACKET_SIZE,
    ClientFrame,
    ClosePeer,
    ForwardPacket,
    FrameType,
    Health,
    KeepAlive,
    NotePreferred,
    PeerGone,
    PeerGoneReason,
    PeerPresent,
    PeerPresentFlags,
    Ping,
    Pong,
    RecvPacket,
    Restarting,
    SendPacket,
    ServerFrame,
    UnknownFrame,
    WatchConns,
    encode_frame,
)
from tailnet.derp.handshake import (
    ClientInfo,
    ServerInfo,
    encode_client_info,
    encode_server_info,
    encode_server_key,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tailnet.keys import MeshKey, NodePrivate, NodePublic

SERVER = NodePrivate(b"\x10" + b"\x11" * 30 + b"\x51")
CLIENT = NodePrivate(b"\x20" + b"\x22" * 30 + b"\x62")
PEER = NodePublic(b"\xab" * 32)
INFO = ClientInfo(can_ack_pings=True, app_name="test", mesh_key=MeshKey(b"\x01" * 32))

CLIENT_FRAMES: list[ClientFrame] = [
    SendPacket(PEER, b""),
    SendPacket(PEER, b"x" * MAX_PACKET_SIZE),
    ForwardPacket(PEER, SERVER.public(), b"hi"),
    NotePreferred(preferred=True),
    NotePreferred(preferred=False),
    WatchConns(),
    ClosePeer(PEER),
    Ping(b"12345678"),
]
SERVER_FRAMES: list[ServerFrame] = [
    RecvPacket(PEER, b""),
    RecvPacket(PEER, b"x" * MAX_PACKET_SIZE),
    KeepAlive(),
    PeerGone(PEER, PeerGoneReason.NOT_HERE),
    PeerPresent(
        PEER, ipaddress.IPv4Address("192.0.2.1"), 4242, PeerPresentFlags.REGULAR
    ),
    Ping(b"12345678"),
    Pong(b"12345678"),
    Health("trouble"),
    Restarting(1.5, 5.0),
]


def feed(
    connection: ClientConnection | ServerConnection, chunks: Iterable[bytes]
) -> list[object]:
    """What a connection makes of bytes that come in ``chunks``."""
    events: list[object] = []
    for chunk in chunks:
        connection.receive_data(chunk)
        while (event := connection.next_event()) is not None:
            events.append(event)
    return events


def one_by_one(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def open_pair() -> tuple[ClientConnection, ServerConnection]:
    """Both ends, handshake done, nothing left to send."""
    client, server = ClientConnection(CLIENT, INFO), ServerConnection(SERVER)
    feed(client, [server.data_to_send()])
    feed(server, [client.data_to_send()])
    server.admit()
    feed(client, [server.data_to_send()])
    return client, server


# -- the handshake ----------------------------------------------------------


def test_handshake() -> None:
    client, server = ClientConnection(CLIENT, INFO), ServerConnection(SERVER)
    assert (client.state, client.data_to_send()) == (State.WAIT_SERVER_KEY, b"")
    assert server.state is State.WAIT_CLIENT_INFO

    greeting = server.data_to_send()
    assert greeting == encode_server_key(SERVER.public())
    assert feed(client, one_by_one(greeting)) == [ServerGreeting(SERVER.public())]
    assert (client.state, client.server_key) == (State.OPEN, SERVER.public())

    hello = client.data_to_send()
    assert feed(server, one_by_one(hello)) == [ClientHello(CLIENT.public(), INFO)]
    assert (server.state, server.client_key) == (State.WAIT_ADMISSION, CLIENT.public())
    assert server.data_to_send() == b""

    limits = ServerInfo(token_bucket_rate=1000, token_bucket_burst=5000)
    server.admit(limits)
    assert feed(client, one_by_one(server.data_to_send())) == [limits]
    assert client.data_to_send() == server.data_to_send() == b""


def test_fast_start() -> None:
    """ClientInfo goes out at once; ServerKey is of no interest any more."""
    client = ClientConnection(CLIENT, INFO, server_key=SERVER.public())
    server = ServerConnection(SERVER)
    assert client.state is State.OPEN
    hello = client.data_to_send() + client.encode(NotePreferred(preferred=True))
    assert feed(server, [hello]) == [ClientHello(CLIENT.public(), INFO)]
    server.admit()
    assert feed(server, [b""]) == [NotePreferred(preferred=True)]
    assert feed(client, [server.data_to_send()]) == [
        UnknownFrame(FrameType.SERVER_KEY, 40),
        ServerInfo(),
    ]


def test_client_may_send_before_server_info() -> None:
    client, server = ClientConnection(CLIENT, INFO), ServerConnection(SERVER)
    feed(client, [server.data_to_send()])
    packet = SendPacket(PEER, b"early")
    feed(server, [client.data_to_send() + client.encode(packet)])
    assert server.next_event() is None
    server.admit()
    assert server.next_event() == packet


def test_server_info_may_come_late_and_again() -> None:
    client = ClientConnection(CLIENT, INFO, server_key=SERVER.public())
    info = encode_server_info(SERVER, CLIENT.public(), ServerInfo(3))
    wire = encode_server_frame(KeepAlive()) + info + info
    assert feed(client, [wire]) == [KeepAlive(), ServerInfo(3), ServerInfo(3)]


def test_greeting_with_bytes_of_the_future() -> None:
    wire = encode_frame(FrameType.SERVER_KEY, MAGIC + bytes(SERVER.public()) + b"new")
    assert feed(ClientConnection(CLIENT, INFO), [wire]) == [
        ServerGreeting(SERVER.public())
    ]


def test_rest_goes_to_whoever_takes_over() -> None:
    client, server = ClientConnection(CLIENT, INFO), ServerConnection(SERVER)
    feed(client, [server.data_to_send()])
    packet = client.encode(SendPacket(PEER, b"early"))
    feed(server, [client.data_to_send() + packet[:10]])
    server.receive_data(packet[10:])
    assert server.take_rest() == packet


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (b"\x02\0\0\0\x28", "expected frame type 0x01, got 0x02"),
        (b"HTTP/1.1 200 OK", "expected frame type 0x01, got 0x48"),
        (b"\x01\0\0\x04\x01", "type 0x01 cannot have 1025 bytes"),
        (encode_frame(0x01, MAGIC + bytes(31)), "does not greet"),
        (encode_frame(0x01, b"DERP!!!!" + bytes(32)), "does not greet"),
        # A point of low order: no box can be made for it.
        (encode_frame(0x01, MAGIC + bytes(32)), "no box"),
    ],
)
def test_bad_greetings(wire: bytes, message: str) -> None:
    client = ClientConnection(CLIENT, INFO)
    with pytest.raises(RemoteProtocolError, match=message):
        feed(client, one_by_one(wire))
    assert client.state is State.FAILED
    assert client.data_to_send() == b""


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        # By the header alone: nobody waits for what would not be read.
        (b"\x04\0\0\0\x20", "expected frame type 0x02, got 0x04"),
        (b"GET /", "expected frame type 0x02, got 0x47"),
        (b"\x02\0\0\0\x37", "cannot have 55 bytes"),
        (b"\x02\0\x04\0\x01", "cannot have 262145 bytes"),
        (encode_frame(0x02, bytes(56)), "does not open"),
        (
            encode_frame(
                0x02, bytes(CLIENT.public()) + CLIENT.seal_to(SERVER.public(), b"[]")
            ),
            "JSON",
        ),
    ],
)
def test_bad_client_infos(wire: bytes, message: str) -> None:
    server = ServerConnection(SERVER)
    with pytest.raises(RemoteProtocolError, match=message):
        feed(server, one_by_one(wire))
    assert server.state is State.FAILED
    assert server.client_key is None


def test_longest_client_info() -> None:
    server = ServerConnection(SERVER)
    server.receive_data(b"\x02\x00\x04\x00\x00" + bytes(262_143))
    assert server.next_event() is None
    server.receive_data(bytes(1))
    with pytest.raises(RemoteProtocolError, match="does not open"):
        server.next_event()


# -- frames -----------------------------------------------------------------


@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_frames_of_the_client_arrive(step: int) -> None:
    client, server = open_pair()
    wire = b"".join(client.encode(frame) for frame in CLIENT_FRAMES)
    chunks = [wire[i : i + step] for i in range(0, len(wire), step)]
    assert feed(server, chunks) == CLIENT_FRAMES


@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_frames_of_the_relay_arrive(step: int) -> None:
    client, server = open_pair()
    wire = b"".join(server.encode(frame) for frame in SERVER_FRAMES)
    chunks = [wire[i : i + step] for i in range(0, len(wire), step)]
    assert feed(client, chunks) == SERVER_FRAMES


def test_client_answers_pings() -> None:
    client, server = open_pair()
    wire = client.encode(Pong(b"12345678"))
    assert wire == b"\x13\0\0\0\x0812345678"
    # Relays do not care for Pongs.
    assert feed(server, [wire]) == [UnknownFrame(FrameType.PONG, 8)]


@pytest.mark.parametrize(
    "frame", [SendPacket(PEER, bytes(MAX_PACKET_SIZE + 1)), UnknownFrame(0x7F, 0)]
)
def test_client_cannot_send(frame: ClientFrame) -> None:
    with pytest.raises(LocalProtocolError):
        open_pair()[0].encode(frame)
    with pytest.raises(LocalProtocolError):
        encode_client_frame(frame)


@pytest.mark.parametrize(
    "frame",
    [
        RecvPacket(PEER, bytes(MAX_PACKET_SIZE + 1)),
        UnknownFrame(0x7F, 0),
        PeerGone(PEER, 256),
        PeerPresent(PEER, None, 1 << 16, PeerPresentFlags(1)),
        PeerPresent(PEER, None, 1, PeerPresentFlags(256)),
        Restarting(-1, 0),
        Restarting(float("inf"), 0),
        Restarting(float("nan"), 0),
        Health("x" * (MAX_BODY_LEN + 1)),
        Health("\ud800"),
    ],
)
def test_relay_cannot_send(frame: ServerFrame) -> None:
    with pytest.raises(LocalProtocolError):
        open_pair()[1].encode(frame)
    with pytest.raises(LocalProtocolError):
        encode_server_frame(frame)


def test_relay_skips_frames_of_any_length() -> None:
    """They pass by without being kept: derpserver.go discards them."""
    _, server = open_pair()
    header = FRAME_HEADER.pack(0x7F, 0xFFFFFFFF)
    assert feed(server, one_by_one(header)) == [UnknownFrame(0x7F, 0xFFFFFFFF)]

    _, server = open_pair()
    size, block = 64 << 20, bytes(1 << 20)
    assert feed(server, [FRAME_HEADER.pack(0x7F, size)]) == [UnknownFrame(0x7F, size)]
    for _ in range(63):
        assert feed(server, [block]) == []
    assert server.take_rest() == b""
    ping = encode_client_frame(Ping(b"12345678"))
    assert feed(server, [block, ping]) == [Ping(b"12345678")]


def test_relay_skips_frames_in_any_chunks() -> None:
    wire = (
        encode_frame(0x7F, bytes(9))
        + encode_frame(0x06, b"")
        + encode_frame(0x12, b"8" * 8)
    )
    expected = [UnknownFrame(0x7F, 9), UnknownFrame(0x06, 0), Ping(b"8" * 8)]
    assert feed(open_pair()[1], one_by_one(wire)) == expected
    assert feed(open_pair()[1], [wire]) == expected


@pytest.mark.parametrize(("frame_type", "sizes"), CLIENT_BODY_SIZES.items())
def test_relay_refuses_sizes_by_the_header(frame_type: int, sizes: range) -> None:
    for size in {sizes[0], sizes[-1]} - {0}:
        _, server = open_pair()
        server.receive_data(FRAME_HEADER.pack(frame_type, size))
        assert server.next_event() is None
    for size in {sizes[0] - 1, sizes[-1] + 1, 0xFFFFFFFF} - {-1}:
        _, server = open_pair()
        server.receive_data(FRAME_HEADER.pack(frame_type, size))
        with pytest.raises(RemoteProtocolError, match=f"a {size}-byte body"):
            server.next_event()


@pytest.mark.parametrize("frame_type", [0x05, 0x7F])
def test_client_refuses_long_frames_by_their_header(frame_type: int) -> None:
    client, _ = open_pair()
    client.receive_data(FRAME_HEADER.pack(frame_type, MAX_BODY_LEN))
    assert client.next_event() is None

    client, _ = open_pair()
    client.receive_data(FRAME_HEADER.pack(frame_type, MAX_BODY_LEN + 1))
    with pytest.raises(RemoteProtocolError, match="limit is 1048576"):
        client.next_event()


def test_client_drops_what_go_drops() -> None:
    client, _ = open_pair()
    short = [encode_frame(t, bytes(7)) for t in (0x05, 0x08, 0x09, 0x12, 0x13, 0x15)]
    assert feed(client, [b"".join(short) + b"\x06\0\0\0\0"]) == [KeepAlive()]


def test_client_refuses_server_info_of_another() -> None:
    client, _ = open_pair()
    info = encode_server_info(CLIENT, CLIENT.public(), ServerInfo())
    with pytest.raises(RemoteProtocolError, match="does not open"):
        feed(client, [info])


# -- faults are for ever ----------------------------------------------------


def test_fault_of_the_client_sticks() -> None:
    _, server = open_pair()
    wire = encode_frame(0x12, bytes(7)) + encode_client_frame(WatchConns())
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match="7-byte body"):
            feed(server, [wire])
    assert server.state is State.FAILED
    assert server.take_rest() == b""
    with pytest.raises(LocalProtocolError, match="no frame in state 'failed'"):
        server.encode(KeepAlive())
    with pytest.raises(LocalProtocolError, match="no admit in state 'failed'"):
        server.admit()


def test_fault_of_the_relay_sticks() -> None:
    client, _ = open_pair()
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match="announces"):
            feed(client, [b"\xff" * 5])
    with pytest.raises(LocalProtocolError, match="no frame in state 'failed'"):
        client.encode(WatchConns())


def test_nothing_is_sent_too_early() -> None:
    with pytest.raises(LocalProtocolError, match="no frame in state 'wait for Se"):
        ClientConnection(CLIENT, INFO).encode(WatchConns())
    server = ServerConnection(SERVER)
    with pytest.raises(LocalProtocolError, match="no frame in state 'wait for Cl"):
        server.encode(KeepAlive())
    with pytest.raises(LocalProtocolError, match="no admit in state 'wait for Cl"):
        server.admit()
    feed(server, [encode_client_info(CLIENT, SERVER.public(), INFO)])
    with pytest.raises(LocalProtocolError, match="no frame in state 'wait for adm"):
        server.encode(KeepAlive())
    server.admit()
    with pytest.raises(LocalProtocolError, match="no admit in state 'open'"):
        server.admit()


# -- the tables -------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "start", "unused_states", "unused_steps"),
    [
        (
            CLIENT_TRANSITIONS,
            State.WAIT_SERVER_KEY,
            {State.WAIT_CLIENT_INFO, State.WAIT_ADMISSION},
            {Step.CLIENT_INFO, Step.ADMIT},
        ),
        (
            SERVER_TRANSITIONS,
            State.WAIT_CLIENT_INFO,
            {State.WAIT_SERVER_KEY},
            {Step.SERVER_KEY},
        ),
    ],
)
def test_tables_lead_everywhere_and_never_back(
    table: dict[tuple[State, Step], State],
    start: State,
    unused_states: set[State],
    unused_steps: set[Step],
) -> None:
    order = list(State)
    reached = {start}
    for state, step in itertools.product(order, Step):
        target = table.get((state, step))
        if target is not None:
            assert order.index(target) >= order.index(state)
            assert (target is State.FAILED) == (step is Step.FAULT)
            reached.add(target)
    assert reached == set(State) - unused_states
    assert {step for _, step in table} == set(Step) - unused_steps


# -- any bytes --------------------------------------------------------------

WIRES = st.lists(
    st.one_of(
        st.sampled_from([encode_server_key(SERVER.public())]),
        st.sampled_from(
            [
                encode_client_info(CLIENT, SERVER.public(), INFO, nonce=bytes(24)),
                encode_server_info(
                    SERVER, CLIENT.public(), ServerInfo(), nonce=bytes(24)
                ),
            ]
        ),
        st.sampled_from([encode_client_frame(f) for f in CLIENT_FRAMES]),
        st.sampled_from([encode_server_frame(f) for f in SERVER_FRAMES]),
        st.builds(encode_frame, st.integers(0, 255), st.binary(max_size=80)),
        st.binary(max_size=8),
    ),
    max_size=5,
).map(b"".join)


@given(data=WIRES, opened=st.booleans(), cut=st.integers(1, 2000))
def test_chunks_do_not_matter_to_either_end(
    data: bytes, opened: bool, cut: int
) -> None:
    """And nothing is raised but RemoteProtocolError."""

    def outcome(server: bool, chunks: list[bytes]) -> list[object]:
        ends = (
            open_pair()
            if opened
            else (ClientConnection(CLIENT, INFO), ServerConnection(SERVER))
        )
        events: list[object] = []
        end = ends[server]
        try:
            for chunk in chunks:
                end.receive_data(chunk)
                while (event := end.next_event()) is not None:
                    events.append(event)
                    if isinstance(event, ClientHello):
                        ends[1].admit()
        except RemoteProtocolError as exc:
            events.append(str(exc))
        return events

    pieces = [data[i : i + cut] for i in range(0, len(data), cut)]
    for server in (False, True):
        assert outcome(server, pieces) == outcome(server, [data])
