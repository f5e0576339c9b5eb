"""The handshake on the relay's side, and who is let in."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from relay.derp.pure_switch import PureSwitch
from relay.derp.session import Admission, DerpService, Newcomer
from relay.derp.switch import ConnId, Hello
from relay.front.tls import TlsConnection
from relay.front.wire import Wire
from tailnet.derp.frame_buffer import FrameBuffer
from tailnet.derp.frames import (
    FRAME_HEADER,
    FrameType,
    RawFrame,
    encode_frame,
    encode_note_preferred,
)
from tailnet.derp.handshake import (
    ClientInfo,
    ServerInfo,
    decode_server_info,
    decode_server_key,
    encode_client_info,
)
from tailnet.derp.upgrade import encode_upgrade_response
from tailnet.derp.websocket import WebsocketStream
from tailnet.keys import NodePrivate

RELAY = NodePrivate(bytes([7]) * 32)
CLIENT = NodePrivate(bytes([9]) * 32)
INFO = ClientInfo(can_ack_pings=True)
REMOTE = ("192.0.2.7", 4242)


@dataclass
class Adoption:
    sock: socket.socket
    hello: Hello
    leftover: bytes
    websocket: WebsocketStream | None


class RecordingSwitch(PureSwitch):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.adopted: list[Adoption] = []

    def adopt(
        self,
        sock: socket.socket,
        hello: Hello,
        *,
        leftover: bytes = b"",
        tls: TlsConnection | None = None,
        websocket: WebsocketStream | None = None,
        limits: object = None,
    ) -> ConnId:
        self.adopted.append(Adoption(sock, hello, leftover, websocket))
        return ConnId(len(self.adopted))


@dataclass
class Trial:
    """One client at a relay's door."""

    admission: Sequence[Admission] = ()
    switch: RecordingSwitch = field(default_factory=RecordingSwitch)

    def __post_init__(self) -> None:
        self.service = DerpService(RELAY, self.switch, self.admission)
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.far.settimeout(5)
        self.wire = Wire(near, None)

    async def run(
        self,
        received: bytes = b"",
        *,
        fast_start: bool = False,
        websocket: WebsocketStream | None = None,
        timeout: float = math.inf,
    ) -> bool:
        """Let the relay shake hands.

        Returns:
            Whether it came to an end before the deadline.
        """
        with trio.move_on_after(timeout) as scope:
            await self.service.serve(
                self.wire,
                received,
                remote=REMOTE,
                fast_start=fast_start,
                websocket=websocket,
            )
        self.wire.close()
        return not scope.cancelled_caught

    def greeting(self) -> bytes:
        return self.far.recv(1 << 16)

    def close(self) -> None:
        self.far.close()
        for adoption in self.switch.adopted:
            adoption.sock.close()


def client_info() -> bytes:
    return encode_client_info(CLIENT, RELAY.public(), INFO)


def frame_of(data: bytes) -> RawFrame:
    frames = FrameBuffer()
    frames.receive_data(data)
    frame = frames.next_frame()
    assert frame is not None
    return frame


@pytest.mark.parametrize("fast_start", [False, True])
async def test_client_is_adopted_with_what_it_sent_ahead(
    fast_start: bool, autojump_clock: trio.testing.MockClock
) -> None:
    trial = Trial()
    ahead = encode_note_preferred(preferred=True) + b"\4\0"
    assert await trial.run(client_info() + ahead, fast_start=fast_start)
    head = b"" if fast_start else encode_upgrade_response(RELAY.public())
    greeting = trial.greeting()
    assert greeting.startswith(head)
    assert decode_server_key(frame_of(greeting[len(head) :])) == RELAY.public()
    [adoption] = trial.switch.adopted
    assert (adoption.hello.key, adoption.hello.info) == (CLIENT.public(), INFO)
    assert adoption.hello.remote == REMOTE
    assert adoption.leftover == ahead
    answer = decode_server_info(CLIENT, RELAY.public(), frame_of(adoption.hello.frames))
    assert answer == ServerInfo(version=2)
    statistics = trial.service.statistics
    assert (statistics.started, statistics.admitted, statistics.failed) == (1, 1, 0)
    assert statistics.fast_starts == fast_start
    trial.close()


async def test_client_info_in_pieces(autojump_clock: trio.testing.MockClock) -> None:
    trial = Trial()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trial.run)
        for byte in client_info():
            trial.far.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
    assert len(trial.switch.adopted) == 1
    trial.close()


def of_size(size: int) -> bytes:
    return encode_frame(
        FrameType.CLIENT_INFO, bytes(CLIENT.public()) + bytes(size - 32)
    )


@pytest.mark.parametrize(
    "data",
    [
        of_size(55),
        FRAME_HEADER.pack(FrameType.CLIENT_INFO, (256 << 10) + 1),
        of_size(90),
        encode_client_info(CLIENT, CLIENT.public(), INFO),
        encode_frame(
            FrameType.CLIENT_INFO,
            bytes(CLIENT.public()) + CLIENT.seal_to(RELAY.public(), b"no JSON"),
        ),
        FRAME_HEADER.pack(FrameType.SEND_PACKET, 100),
        FRAME_HEADER.pack(FrameType.PING, 8),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["short", "long", "no box", "for another", "no JSON", "packet", "Ping", "HTTP"],
)
async def test_what_is_no_client_info_ends_at_once(
    data: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    trial = Trial()
    started = trio.current_time()
    assert await trial.run(data, timeout=10)
    assert trio.current_time() == started
    assert trial.switch.adopted == []
    assert trial.service.statistics.failed == 1
    trial.close()


async def test_silence_is_ended_by_the_callers_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    trial = Trial()
    assert not await trial.run(client_info()[:50], timeout=10)
    assert trio.current_time() == 10
    trial.close()


async def test_hanging_up_is_a_failure(autojump_clock: trio.testing.MockClock) -> None:
    trial = Trial()
    trial.far.shutdown(socket.SHUT_WR)
    assert await trial.run()
    assert trial.service.statistics.failed == 1
    trial.close()


async def test_reset_is_a_failure_too(autojump_clock: trio.testing.MockClock) -> None:
    """Only hanging up politely was counted."""
    trial = Trial()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    near.setblocking(False)
    trial.wire.close()
    trial.wire = Wire(near, None)
    # No lingering: close() sends a reset.
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    with pytest.raises(ConnectionError):
        await trial.run()
    assert trial.service.statistics.failed == 1
    trial.wire.close()
    trial.close()


async def test_bug_in_admission_lets_nobody_in(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def broken(_newcomer: Newcomer) -> str | None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("a bug in admission")

    trial = Trial(admission=[broken])
    with pytest.raises(ZeroDivisionError):  # the front logs it
        await trial.run(client_info())
    assert trial.switch.adopted == []
    assert trial.service.statistics.admitted == 0
    trial.wire.close()
    trial.greeting()
    assert trial.far.recv(9) == b""
    trial.close()


async def test_all_have_to_let_a_client_in(
    autojump_clock: trio.testing.MockClock,
) -> None:
    asked: list[tuple[str, Newcomer]] = []

    async def friendly(newcomer: Newcomer) -> str | None:
        await trio.sleep(1)
        asked.append(("friendly", newcomer))
        return None

    async def strict(newcomer: Newcomer) -> str | None:
        await trio.sleep(1)
        asked.append(("strict", newcomer))
        return "not on the list"

    trial = Trial(admission=[friendly, strict, friendly])
    assert await trial.run(client_info())
    newcomer = Newcomer(CLIENT.public(), INFO, REMOTE)
    assert asked == [("friendly", newcomer), ("strict", newcomer)]
    assert trial.switch.adopted == []
    assert trial.service.statistics.refused == 1
    trial.greeting()
    assert trial.far.recv(9) == b""  # closed, without a word
    trial.close()


async def test_admission_is_under_the_deadline_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def asleep(_newcomer: Newcomer) -> str | None:
        await trio.sleep_forever()

    trial = Trial(admission=[asleep])
    assert not await trial.run(client_info(), timeout=10)
    assert trial.switch.adopted == []
    trial.close()


async def test_in_a_websocket(autojump_clock: trio.testing.MockClock) -> None:
    trial = Trial()
    client = WebsocketStream(server=False)
    websocket = WebsocketStream(server=True)
    received = client.encode(client_info() + b"\4\0")
    assert await trial.run(received, websocket=websocket)
    greeting = client.receive_data(trial.greeting())
    assert decode_server_key(frame_of(greeting)) == RELAY.public()
    [adoption] = trial.switch.adopted
    assert adoption.websocket is websocket
    assert adoption.leftover == b"\4\0"
    assert trial.service.statistics.websockets == 1
    trial.close()


async def test_text_in_a_websocket_is_told_why(
    autojump_clock: trio.testing.MockClock,
) -> None:
    trial = Trial()
    client = WebsocketStream(server=False)
    text = b"\x81\x82" + bytes(4) + b"hi"
    assert await trial.run(text, websocket=WebsocketStream(server=True))
    client.receive_data(trial.far.recv(1 << 16))
    assert client.close_code == 1003
    trial.close()
