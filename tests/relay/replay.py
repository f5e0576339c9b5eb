"""Replays a recorded session against a server of ours.

Everything that the agent and the client said is said again, in its order, on
connections of their own: requests, control streams byte by byte, DERP frames.
Keys are ours in place of theirs, as nobody has the others' private ones; and
the id that the server has given the client. Before each row of the server's
the replay lets the server answer, so that nothing is said too early.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio.testing

from tailnet.control.drpc import Kind, PacketDecoder, encode_packet
from tailnet.control.yamux_frames import (
    ACK,
    FIN,
    HEADER_LEN,
    RST,
    SYN,
    FrameType,
    decode_header,
    encode_header,
)
from tailnet.derp.frame_buffer import FrameBuffer
from tailnet.derp.frames import FrameType as DerpType, encode_frame
from tailnet.derp.handshake import (
    ClientInfo,
    ServerInfo,
    decode_server_info,
    encode_client_info,
)
from tailnet.derp.websocket import WebsocketStream
from tailnet.keys import NodePrivate, NodePublic
from tests.relay.golden import Recording, Row, names_in

__all__ = ("Replay", "replay")

_KINDS: Final = {
    "Invoke": Kind.INVOKE,
    "Message": Kind.MESSAGE,
    "Error": Kind.ERROR,
    "Cancel": Kind.CANCEL,
    "Close": Kind.CLOSE,
    "CloseSend": Kind.CLOSE_SEND,
    "InvokeMetadata": Kind.INVOKE_METADATA,
}
_KIND_NAMES: Final = {kind: name for name, kind in _KINDS.items()}
_FLAGS: Final = {"SYN": SYN, "ACK": ACK, "FIN": FIN, "RST": RST}
_YAMUX_NAMES: Final = {
    FrameType.DATA: "data",
    FrameType.WINDOW_UPDATE: "window",
    FrameType.PING: "ping",
    FrameType.GO_AWAY: "goaway",
}
_DERP_NAMES: Final = {
    DerpType.SERVER_KEY: "ServerKey",
    DerpType.CLIENT_INFO: "ClientInfo",
    DerpType.SERVER_INFO: "ServerInfo",
    DerpType.SEND_PACKET: "SendPacket",
    DerpType.RECV_PACKET: "RecvPacket",
    DerpType.KEEP_ALIVE: "KeepAlive",
    DerpType.NOTE_PREFERRED: "NotePreferred",
    DerpType.PEER_GONE: "PeerGone",
}
_DERP_TYPES: Final = {name: kind for kind, name in _DERP_NAMES.items()}

# Of a frame's body that the recorder kept. Bytes.
HEAD_LEN: Final = 64

# Seconds, by the virtual clock, for an answer that does not come at once.
PATIENCE: Final = 1.0


@dataclass
class Replay:
    """What became of a replay.

    Attributes:
        rows: As a recorder of our server would have written them.
        names: Ours, see :class:`tests.relay.golden.Recording`.
        said: Bytes of the control streams that were sent, by connection and
            stream.
        server_infos: What the relay said in its boxes.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    names: dict[str, bytes] = field(default_factory=dict)
    said: dict[tuple[int, int], bytes] = field(default_factory=dict)
    server_infos: list[ServerInfo] = field(default_factory=list)


class _Connection:
    """One connection: what is sent, and rows of what comes."""

    def __init__(
        self,
        address: tuple[str, int],
        first: Row,
        key: NodePrivate,
        note: Callable[[dict[str, Any]], None],
    ) -> None:
        self._sock = socket.create_connection(address, timeout=5)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setblocking(False)
        self._conn, self._peer, self._key = first["conn"], first["peer"], key
        self._note_row = note
        self._buffer = b""
        self._parse = self._parse_http
        self._paths: list[str] = []
        self._websocket: WebsocketStream | None = None
        self._frames: FrameBuffer | None = None
        self._decoders: dict[int, PacketDecoder] = {}
        self._inside = b""
        self._closed = self._at_end = False
        self.methods: dict[int, str] = {}
        self.server_key: NodePublic | None = None
        self.server_infos: list[ServerInfo] = []

    def _note(self, ev: str, **fields: Any) -> None:
        self._note_row({"ev": ev, "conn": self._conn, "peer": self._peer, **fields})

    # -- sending ------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        assert self._sock.send(data) == len(data)

    def send_inside(self, data: bytes) -> None:
        """Send bytes in what the connection was upgraded to."""
        self.send(data if self._websocket is None else self._websocket.encode(data))

    def request(self, row: Row) -> None:
        target = row["path"] + (f"?{row['query']}" if row["query"] else "")
        headers = {**row["headers"], "Host": row["host"]}
        lines = [f"{row['method']} {target} HTTP/1.1"]
        lines += [f"{name}: {headers[name]}" for name in row["order"]]
        self._paths.append(row["path"])
        self.send("\r\n".join((*lines, "", "")).encode())

    def send_derp(self, kind: str, body: bytes) -> None:
        """Send a frame, and note it as the recorder did."""
        self._note_derp(kind, body, "c2s")
        self.send_inside(encode_frame(_DERP_TYPES[kind], body))

    def close_websocket(self, code: int, reason: str) -> None:
        assert self._websocket is not None
        self._websocket.close(code, reason)
        self.send(self._websocket.data_to_send())

    def finish(self) -> None:
        """Send no more."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._sock.close()

    # -- receiving ----------------------------------------------------------

    def pump(self) -> None:
        """Make rows of all that has come."""
        while not self._at_end:
            try:
                data = self._sock.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionError as exc:
                self._at_end = True
                self._note("eof", dir="s2c", error=str(exc))
                return
            if not data:
                self._at_end = True
                self._note("eof", dir="s2c")
                return
            self._buffer += data
            self._parse()

    def _parse_http(self) -> None:
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            status = int(first.split()[1])
            length = int(headers.get("Content-Length", 0))
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            row: dict[str, Any] = {"status": status, "headers": headers}
            row["path"] = self._paths.pop(0)
            if status != 101:
                row["body"] = rest[:length].decode()
                if "json" in headers.get("Content-Type", ""):
                    row["json"] = json.loads(row["body"])
            self._note("response", **row)
            if status == 101:
                self._switch(headers)
                return

    def _switch(self, headers: Mapping[str, str]) -> None:
        if headers["Upgrade"] == "websocket":
            self._websocket = WebsocketStream(server=False)
        if headers["Upgrade"] == "DERP" or "Sec-Websocket-Protocol" in headers:
            self._frames = FrameBuffer(max_body_len=1 << 20)
            self._parse = self._parse_derp
        else:
            self._parse = self._parse_control
        self._parse()

    def _take(self) -> bytes:
        """The bytes inside the websocket, if there is one."""
        data, self._buffer = self._buffer, b""
        websocket = self._websocket
        if websocket is None:
            return data
        inside = websocket.receive_data(data)
        if websocket.closed and not self._closed:
            self._closed = True
            code, reason = websocket.close_code, websocket.close_reason
            self._note("ws_control", dir="s2c", op="close", code=code, reason=reason)
        return inside

    def _parse_derp(self) -> None:
        assert self._frames is not None
        self._frames.receive_data(self._take())
        while (frame := self._frames.next_frame()) is not None:
            body = bytes(frame.body)
            name = _DERP_NAMES.get(DerpType(frame.type), f"type {frame.type}")
            if name == "ServerKey":
                self.server_key = NodePublic(body[8:40])
            if name == "ServerInfo":
                assert self.server_key is not None
                info = decode_server_info(self._key, self.server_key, frame)
                self.server_infos.append(info)
            self._note_derp(name, body, "s2c")

    def _note_derp(self, name: str, body: bytes, direction: str) -> None:
        self._note(
            "derp",
            dir=direction,
            type=name,
            len=len(body),
            head=body[:HEAD_LEN].hex(),
            ws=self._websocket is not None,
        )

    def _parse_control(self) -> None:
        self._inside += self._take()
        while len(self._inside) >= HEADER_LEN:
            header = decode_header(self._inside)
            length = header.length if header.type == FrameType.DATA else 0
            end = HEADER_LEN + length
            if len(self._inside) < end:
                return
            data, self._inside = self._inside[HEADER_LEN:end], self._inside[end:]
            flags = "|".join(name for name, bit in _FLAGS.items() if header.flags & bit)
            kind = _YAMUX_NAMES[FrameType(header.type)]
            self._note(
                "yamux",
                dir="s2c",
                stream=header.stream_id,
                type=kind,
                flags=flags,
                len=header.length,
            )
            if length:
                self._parse_packets(header.stream_id, data)

    def _parse_packets(self, stream: int, data: bytes) -> None:
        decoder = self._decoders.setdefault(stream, PacketDecoder())
        decoder.receive_data(data)
        while (packet := decoder.next_packet()) is not None:
            self._note(
                "drpc",
                dir="s2c",
                stream=stream,
                rpc=self.methods[stream],
                kind=_KIND_NAMES[Kind(packet.kind)],
                drpc_stream=packet.stream_id,
                msg=packet.message_id,
                control=packet.control,
                hex=bytes(packet.data).hex(),
            )


class _Replayer:
    """The state of one replay."""

    def __init__(self, recording: Recording, address: tuple[str, int]) -> None:
        self._recording = recording
        self._address = address
        self._keys = {peer: NodePrivate.generate() for peer in ("agent", "client")}
        self._connections: dict[int, _Connection] = {}
        self._awaited: dict[str, int] = {}
        self.result = Replay()
        self._counts: dict[str, int] = {}

    async def run(self) -> Replay:
        try:
            for row in self._recording.rows:
                if row["ev"] == "response" or row.get("dir") == "s2c":
                    await self._wait_for(row)
                else:
                    # One by one, so that the server has no choice of order
                    # where Coder's has one: of packets in different lanes,
                    # and of a stream's end and its connection's.
                    self._say(row)
                    await self._settle()
            await self._settle()
        finally:
            for connection in self._connections.values():
                connection.close()
                self.result.server_infos += connection.server_infos
        self.result.names.update(names_in(self.result.rows))
        return self.result

    def _note(self, row: dict[str, Any]) -> None:
        self.result.rows.append(row)
        kind = _kind_of(row)
        self._counts[kind] = self._counts.get(kind, 0) + 1

    async def _settle(self) -> None:
        """Let the server do what it can at once, and read its answers.

        A socket of loopback has what was sent to it, so nothing is on its way
        when no task can run.
        """
        await trio.testing.wait_all_tasks_blocked()
        for connection in self._connections.values():
            connection.pump()

    async def _wait_for(self, row: Row) -> None:
        """Wait for what the server said here; if it does not, that will show."""
        if row["ev"] == "ws_control" or (row["ev"] == "yamux" and not row["flags"]):
            return  # there may be more or fewer of them
        kind = _kind_of(row)
        self._awaited[kind] = wanted = self._awaited.get(kind, 0) + 1
        with trio.move_on_after(PATIENCE):
            while self._counts.get(kind, 0) < wanted:
                await self._settle()
                if self._counts.get(kind, 0) < wanted:
                    await trio.sleep(PATIENCE / 10)

    def _translate(self, data: bytes) -> bytes:
        """Our keys and ids in place of the recorded ones."""
        ours = names_in(self.result.rows)
        for peer, key in self._keys.items():
            ours[f"{peer} key"] = bytes(key.public())
        for name, theirs in self._recording.names.items():
            if name in ours:
                data = data.replace(theirs, ours[name])
        return data

    def _say(self, row: Row) -> None:
        if row["ev"] == "request":
            connection = self._connections.get(row["conn"])
            if connection is None:
                key = self._keys[row["peer"]]
                connection = _Connection(self._address, row, key, self._note)
                self._connections[row["conn"]] = connection
            connection.request(row)
            return
        connection = self._connections[row["conn"]]
        match row["ev"]:
            case "yamux" if row["type"] == "window":
                flags = sum(_FLAGS[name] for name in row["flags"].split("|") if name)
                connection.send_inside(
                    encode_header(
                        FrameType.WINDOW_UPDATE, flags, row["stream"], row["len"]
                    )
                )
            case "drpc":
                self._say_packet(connection, row)
            case "derp":
                self._say_frame(connection, row)
            case "ws_control":
                connection.close_websocket(row["code"], row["reason"])
            case "eof":
                connection.finish()

    def _say_packet(self, connection: _Connection, row: Row) -> None:
        stream = row["stream"]
        body = bytes.fromhex(row.get("hex", ""))
        if row["kind"] == "Invoke":
            connection.methods[stream] = row["rpc"]
            body = row["rpc"].encode()
        packet = encode_packet(
            _KINDS[row["kind"]],
            row["drpc_stream"],
            row["msg"],
            self._translate(body),
            control=row["control"],
        )
        original = encode_packet(
            _KINDS[row["kind"]],
            row["drpc_stream"],
            row["msg"],
            body,
            control=row["control"],
        )
        key = row["conn"], stream
        self.result.said[key] = self.result.said.get(key, b"") + original
        header = encode_header(FrameType.DATA, 0, stream, len(packet))
        connection.send_inside(header + packet)

    def _say_frame(self, connection: _Connection, row: Row) -> None:
        if row["type"] == "ClientInfo":
            assert connection.server_key is not None
            frame = encode_client_info(
                self._keys[row["peer"]],
                connection.server_key,
                ClientInfo(can_ack_pings=True),
            )
            connection.send_derp("ClientInfo", frame[5:])
            return
        head = self._translate(bytes.fromhex(row["head"]))
        connection.send_derp(row["type"], head.ljust(row["len"], b"\0"))


def _kind_of(row: Row) -> str:
    """Rows that are alike are answered one by one."""
    where = row.get("stream", row.get("dir"))
    if row["ev"] == "derp":
        where = row["dir"]
    what = row.get("kind") if row["ev"] == "drpc" else row.get("flags", "")
    return f"{row['conn']} {row['ev']} {where} {what}"


async def replay(recording: Recording, address: tuple[str, int]) -> Replay:
    """Replay a session.

    Args:
        recording: What to say.
        address: Where the server listens. It has to run in this event loop.
    """
    return await _Replayer(recording, address).run()
