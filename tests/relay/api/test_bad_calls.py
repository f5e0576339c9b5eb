"""Every call of both services with everything that a peer may do wrong in it.

The matrix is made of the services' own descriptors, on an agent's channel and
on a client's: each wrong ends its call or its session with an error or a close
code and one line in the log, and the session of somebody else goes on.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
import structlog.testing
import trio
import trio.testing

from relay.api.agent_service import agent_handlers
from relay.api.peer import ApiPeer
from relay.api.router import Auth, Route
from relay.api.tailnet_service import tailnet_handlers
from relay.server import API_ROUTES
from tailnet.control.drpc import (
    MAX_PACKET_LEN,
    UNIMPLEMENTED,
    Kind,
    decode_error,
    encode_packet,
    encode_varint,
)
from tailnet.control.proto import agent_pb2, tailnet_pb2
from tailnet.control.server import Handler
from tailnet.control.yamux import MAX_STREAMS
from tailnet.control.yamux_frames import (
    ACK,
    FIN,
    INITIAL_WINDOW,
    RST,
    FrameType,
    encode_header,
)
from tailnet.coordinator.auth import AgentAuth, ClientAuth
from tailnet.coordinator.serve import CoordinatorService
from tests.control.raw_peer import RawPeer, raw_client, request
from tests.relay.api.bad_requests import SHAPES, good, key_of
from tests.relay.api.clients import open_api
from tests.relay.api.rig import Rig, open_rig

AGENT: Final = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
TAILNET: Final = tailnet_pb2.DESCRIPTOR.services_by_name["Tailnet"]
COORDINATE: Final = f"/{TAILNET.full_name}/Coordinate"
TELEMETRY: Final = f"/{TAILNET.full_name}/PostTelemetry"

# Methods that this server answers with code 12, by channel; see the reference.
UNANSWERED: Final = {
    ("agent", "PushContextState"),
    ("agent", "ReportBoundaryLogs"),
    ("agent", "RefreshResumeToken"),
    ("agent", "WorkspaceUpdates"),
}
# More than 256 KiB may be a request of these.
LONG: Final = {"BatchCreateLogs", "BatchUpdateMetadata", "PostTelemetry"}


@dataclass(frozen=True)
class Method:
    """A method as somebody may call it."""

    channel: str
    service: str
    name: str
    input: str

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"

    @property
    def is_there(self) -> bool:
        return (self.channel, self.name) not in UNANSWERED


def methods() -> list[Method]:
    channels = (("agent", AGENT), ("agent", TAILNET), ("client", TAILNET))
    return [
        Method(channel, service.full_name, method.name, method.input_type.name)
        for channel, service in channels
        for method in service.methods
    ]


every_method = pytest.mark.parametrize(
    "method", methods(), ids=lambda method: f"{method.channel} {method.name}"
)
every_channel = pytest.mark.parametrize("channel", ["agent", "client"])


class World:
    """A server's rooms, and the session of somebody who does nothing wrong."""

    def __init__(self, rig: Rig, witness: RawPeer) -> None:
        self._rig = rig
        self._witness = witness
        self._calls = 1
        self.logs: list[Any] = []

    def handlers(self, channel: str) -> Mapping[str, Handler]:
        return handlers_of(self._rig, channel, UUID(int=1))

    @asynccontextmanager
    async def offender(
        self, channel: str, *, capacity: int = 1 << 24
    ) -> AsyncIterator[RawPeer]:
        """A session in which something is wrong; then others are looked at."""
        with structlog.testing.capture_logs() as logs:
            async with raw_client(self.handlers(channel), capacity=capacity) as peer:
                yield peer
                await peer.settle()
        # Of the good calls that show that things go on.
        self.logs = [line for line in logs if line["event"] != "telemetry"]
        await self.others_go_on()

    async def others_go_on(self) -> None:
        """The witness still has its stream, and can make another call."""
        witness = self._witness
        self._calls += 2
        witness.open(self._calls, request(TELEMETRY, b""))
        await witness.settle()
        kinds = [packet.kind for packet in witness.packets(self._calls)]
        assert kinds == [Kind.MESSAGE, Kind.CLOSE_SEND]
        witness.fin(self._calls)
        assert witness.packets(1) == []
        assert witness.flags(1) == [ACK]
        assert witness.link.peer.closed_with is None


def handlers_of(rig: Rig, channel: str, client_id: UUID) -> Mapping[str, Handler]:
    agent_id = rig.agent.agent.id
    if channel == "client":
        auth = ClientAuth(agent_id)
        peer = ApiPeer(client_id, "client", "client", auth, rig.alice)
        return tailnet_handlers(rig.context, peer)
    peer = ApiPeer(agent_id, "main", "agent", AgentAuth(agent_id))
    return {
        **tailnet_handlers(rig.context, peer),
        **agent_handlers(rig.agent, rig.context),
    }


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_rig(tmp_path) as rig:
        rig.context.coordinator = CoordinatorService()
        async with (
            raw_client(handlers_of(rig, "client", UUID(int=2))) as witness,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(witness.answer_pings)
            witness.open(1, request(COORDINATE, b"", done=False))
            await witness.settle()
            yield World(rig, witness)
            nursery.cancel_scope.cancel()


def check_line(logs: list[Any], event: str, reason: str, level: str = "info") -> None:
    """There is one line, and another at the most that the session has ended."""
    lines = [
        entry
        for entry in logs
        if entry["event"] != "rpc session ended" or event == "rpc session ended"
    ]
    assert [(line["event"], line["log_level"]) for line in lines] == [(event, level)]
    assert reason in lines[0]["reason"]


def check_refusal(peer: RawPeer, method: Method, text: str) -> None:
    """The call is answered with an error, and nothing else."""
    (packet,) = peer.packets(1)
    assert packet.kind == Kind.ERROR
    error = decode_error(packet.data)
    if method.is_there:
        assert (error.code, bool(re.search(text, str(error)))) == (0, True), error
    else:
        assert (error.code, str(error)) == (UNIMPLEMENTED, "Unimplemented")


# -- messages -----------------------------------------------------------------


@every_method
async def test_garbage(
    method: Method, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as there:
        async with there.offender(method.channel) as peer:
            peer.open(1, request(method.path, b"\xff\xff\xff", done=False))
            await peer.settle()
            if method.name == "Coordinate":
                answer, end = peer.packets(1)
                response = tailnet_pb2.CoordinateResponse.FromString(answer.data)
                assert response.error == "not a CoordinateRequest"
                assert end.kind == Kind.CLOSE
            else:
                check_refusal(peer, method, f"cannot parse {method.input}: ")
            await goes_on_itself(peer)
        if method.name == "Coordinate":
            check_line(there.logs, "coordination refused", "not a CoordinateRequest")
        elif method.is_there:
            check_line(there.logs, "rpc call refused", "cannot parse")
        else:
            check_line(there.logs, "rpc call refused", "Unimplemented", "debug")


async def goes_on_itself(peer: RawPeer) -> None:
    """Another call of the same session is answered."""
    peer.open(99, request(TELEMETRY, b""))
    await peer.settle()
    assert [p.kind for p in peer.packets(99)] == [Kind.MESSAGE, Kind.CLOSE_SEND]
    peer.fin(99)


@every_method
async def test_half_a_message(
    method: Method, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    half = encode_packet(Kind.MESSAGE, 1, 2, b"abcdefgh")[:-4]
    async with world(tmp_path) as there:
        async with there.offender(method.channel) as peer:
            peer.open(1, request(method.path, done=False))
            await peer.settle()
            peer.data(1, half)
            peer.fin(1)
            await peer.settle()
            if method.is_there:
                assert peer.packets(1) == []
                assert peer.flags(1) == [ACK, RST]
            else:  # it had its answer already
                check_refusal(peer, method, "")
                assert peer.flags(1) == [ACK, FIN]
            await goes_on_itself(peer)
        if method.is_there:
            check_line(there.logs, "rpc call failed", "ended inside a packet")
        else:
            check_line(there.logs, "rpc call refused", "Unimplemented", "debug")


@every_method
async def test_no_message(
    method: Method, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as there:
        async with there.offender(method.channel) as peer:
            peer.open(1, request(method.path))
            await peer.settle()
            if method.name == "Coordinate":  # it is a stream of any length
                assert [packet.kind for packet in peer.packets(1)] == [Kind.CLOSE_SEND]
            else:
                check_refusal(peer, method, "EOF")
            await goes_on_itself(peer)
        if method.name == "Coordinate":
            assert [entry["event"] for entry in there.logs] == ["rpc session ended"]
        elif method.is_there:
            check_line(there.logs, "rpc call refused", "EOF")
        else:
            check_line(there.logs, "rpc call refused", "Unimplemented", "debug")


@every_method
async def test_a_message_of_more_than_4_mib(
    method: Method, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Its length is enough: nobody waits for the rest."""
    header = bytes((Kind.MESSAGE << 1 | 1, 1, 2)) + encode_varint(MAX_PACKET_LEN + 1)
    async with world(tmp_path) as there:
        async with there.offender(method.channel) as peer:
            peer.open(1, request(method.path, done=False) + header)
            await peer.settle()
            assert peer.packets(1) == []
            assert peer.flags(1) == [ACK, RST]
            await goes_on_itself(peer)
        check_line(there.logs, "rpc call failed", "data overflow")


@every_method
async def test_a_request_that_is_too_long_for_its_method(
    method: Method, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    size = (1 << 20) + 1 if method.name in LONG else (256 << 10) + 1
    async with world(tmp_path) as there:
        async with there.offender(method.channel) as peer:
            wire = request(method.path, bytes(size))
            peer.open(1)
            for start in range(0, len(wire), 100_000):
                peer.data(1, wire[start : start + 100_000])
                await peer.settle()
            if method.name == "Coordinate":
                answer, _ = peer.packets(1)
                response = tailnet_pb2.CoordinateResponse.FromString(answer.data)
                assert response.error == f"request of {size} bytes, the limit is 32768"
            elif method.name in LONG - {"PostTelemetry"}:  # these may have 4 MiB
                check_refusal(peer, method, f"cannot parse {method.input}: ")
            else:
                check_refusal(peer, method, rf"^{method.input} of {size} bytes, the")
            await goes_on_itself(peer)
        if method.name == "Coordinate":
            check_line(there.logs, "coordination refused", "")
        else:
            level = "info" if method.is_there else "debug"
            check_line(there.logs, "rpc call refused", "", level)


@every_channel
@pytest.mark.parametrize("service", [AGENT.full_name, TAILNET.full_name, "nobody's"])
async def test_unknown_methods(
    channel: str,
    service: str,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    path = f"/{service}/NoSuch"
    async with world(tmp_path) as there:
        async with there.offender(channel) as peer:
            peer.open(1, request(path, b"x"))
            await peer.settle()
            (packet,) = peer.packets(1)
            error = decode_error(packet.data)
            assert error.code == UNIMPLEMENTED
            assert str(error) == f'protocol error: unknown rpc: "{path}"'
            await goes_on_itself(peer)
        (line, _) = there.logs
        assert (line["event"], line["method"]) == ("rpc method unknown", path)


async def test_agents_methods_are_unknown_to_clients(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as there:
        for method in AGENT.methods:
            async with there.offender("client") as peer:
                peer.open(1, request(f"/{AGENT.full_name}/{method.name}", b""))
                await peer.settle()
                (packet,) = peer.packets(1)
                assert decode_error(packet.data).code == UNIMPLEMENTED
            assert there.logs[0]["event"] == "rpc method unknown"


# -- streams, credit, silence ---------------------------------------------------


@every_method
async def test_too_many_streams(
    method: Method, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Those that are too many are refused, and the others served."""
    async with world(tmp_path) as there:
        async with there.offender(method.channel) as peer:
            ids = range(1, 2 * (MAX_STREAMS + 44), 2)
            for stream in ids:
                peer.open(stream, request(method.path, done=False))
            await peer.settle()
            refused = [stream for stream in ids if peer.flags(stream) == [RST]]
            assert refused == list(ids[MAX_STREAMS:])
            for stream in ids[:MAX_STREAMS]:
                peer.rst(stream)
            await peer.settle()
            peer.open(2001, request(TELEMETRY, b""))
            await peer.settle()
            assert len(peer.packets(2001)) == 2
        if method.is_there:
            (line,) = there.logs
        else:  # each of the calls has its answer, too
            *calls, line = there.logs
            assert {entry["event"] for entry in calls} == {"rpc call refused"}
        assert (line["event"], line["log_level"]) == ("rpc session ended", "info")
        assert line["refused_streams"] == 44


@every_channel
async def test_ten_thousand_streams(
    channel: str, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as there:
        async with there.offender(channel) as peer:
            for stream in range(1, 20_000, 2):
                peer.open(stream)
            await peer.settle()
            assert peer.flags(19_999) == [RST]
        (line,) = there.logs
        assert line["refused_streams"] == 10_000 - MAX_STREAMS


@every_method
async def test_more_than_there_is_credit_for(
    method: Method, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """yamux is broken then, and with it the whole session."""
    async with world(tmp_path) as there:
        async with there.offender(method.channel) as peer:
            peer.open(1, request(method.path, done=False))
            peer.link.send_nowait(
                encode_header(FrameType.DATA, 0, 1, INITIAL_WINDOW + 1)
            )
            await peer.settle()
            closed = peer.link.peer.closed_with
            assert closed is not None
            assert closed[0] == 1011
            assert closed[1].startswith("receive window exceeded (stream: 1, ")
        if method.is_there:
            check_line(there.logs, "rpc session ended", "receive window exceeded")


@every_method
async def test_a_peer_that_does_not_read(
    method: Method, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Its socket takes less than the first answer, for ten seconds."""
    async with world(tmp_path) as there:
        async with there.offender(method.channel, capacity=8) as peer:
            peer.open(1, request(method.path, b"", done=False))
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(peer.link.flush)
                    while peer.link.peer.closed_with is None:
                        await trio.sleep(1)
                    nursery.cancel_scope.cancel()
            assert peer.link.peer.closed_with == (1011, "the peer does not read")
        ends = [line for line in there.logs if line["event"] == "rpc session ended"]
        assert [(line["log_level"], line["reason"]) for line in ends] == [
            ("info", "the peer does not read")
        ]


# -- websockets -----------------------------------------------------------------


@asynccontextmanager
async def websocket(route: Route, tmp_path: Path) -> AsyncIterator[trio.SocketStream]:
    """The connection of a websocket of an endpoint, behind its 101."""
    async with open_rig(tmp_path) as rig, open_api(rig, API_ROUTES) as api:
        rig.context.coordinator = CoordinatorService()
        async with api.connect() as stream:
            await stream.send_all(good(route, rig).encode())
            data = b""
            while b"\r\n\r\n" not in data:
                data += await stream.receive_some()
            assert data.startswith(b"HTTP/1.1 101 ")
            yield stream
        await trio.testing.wait_all_tasks_blocked()
        assert not rig.context.agent_sessions.agent_ids()
        assert not rig.context.heartbeats._watched


UNMASKED: Final = bytes.fromhex("8201 00")
TEXT: Final = bytes.fromhex("8181 00000000 ff")
RESERVED: Final = bytes.fromhex("8381 00000000 00")
LONG_PING: Final = bytes.fromhex("89fe 007e 00000000") + bytes(126)
HALF: Final = bytes.fromhex("8288 00000000 00")


@pytest.mark.parametrize(
    ("frame", "codes"),
    [
        (UNMASKED, {1002}),
        # Not UTF-8 where text is welcome.
        (TEXT, {1003, 1007}),
        (RESERVED, {1002}),
        (LONG_PING, {1002}),
    ],
    ids=["unmasked", "text", "reserved", "ping"],
)
@pytest.mark.parametrize(
    "route",
    [route for route in API_ROUTES if SHAPES[key_of(route)].is_websocket],
    ids=key_of,
)
async def test_broken_frames(
    route: Route, frame: bytes, codes: set[int], tmp_path: Path
) -> None:
    async with websocket(route, tmp_path) as stream:
        with structlog.testing.capture_logs() as logs:
            await stream.send_all(frame)
            with trio.fail_after(10):
                data = b"".join([bytes(more) async for more in stream])
        close = data[data.rindex(b"\x88") :]
        assert int.from_bytes(close[2:4]) in codes
        (line,) = logs
        assert line["event"] in ("a websocket broke", "rpc session ended")
        assert line["log_level"] == "info"
        assert line["reason"]


@pytest.mark.parametrize(
    "route",
    [route for route in API_ROUTES if SHAPES[key_of(route)].is_websocket],
    ids=key_of,
)
async def test_half_a_frame(route: Route, tmp_path: Path) -> None:
    """And the end of the connection: there is nobody to be told."""
    async with websocket(route, tmp_path) as stream:
        await stream.send_all(HALF)
        await stream.send_eof()
        with trio.fail_after(10):
            async for _ in stream:
                pass


def test_who_may_open_websockets() -> None:
    """All channels are behind a token but the one that shows the map."""
    free = [
        route.pattern
        for route in API_ROUTES
        if SHAPES[key_of(route)].is_websocket and route.auth is Auth.NONE
    ]
    assert free == ["/api/v2/derp-map"]
