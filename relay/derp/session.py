"""From an upgraded connection to a client of the switch.

ServerKey out, ClientInfo in, admission, and the connection goes to the switch.
Whatever the client does wrong ends this session alone: the relay closes
without an error frame, as derper does, and logs one line.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from relay.derp.switch import Hello, Switch
from relay.front.tls import TlsError
from relay.front.wire import Wire
from tailnet.derp.frame_buffer import FrameBuffer
from tailnet.derp.frames import MAX_CLIENT_INFO_LEN, FrameType, RawFrame
from tailnet.derp.handshake import (
    ClientInfo,
    ServerInfo,
    decode_client_info,
    encode_server_info,
    encode_server_key,
)
from tailnet.derp.upgrade import encode_upgrade_response
from tailnet.derp.websocket import WebsocketStream
from tailnet.errors import RemoteProtocolError
from tailnet.keys import NodePrivate, NodePublic

__all__ = ("Admission", "DerpService", "Newcomer", "SessionStatistics")

log = structlog.get_logger("relay.derp")


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A client that has proven its key and asks to be let in.

    Attributes:
        key: Its node key.
        info: What it says of itself.
        remote: Its address and port, None if unknown.
    """

    key: NodePublic
    info: ClientInfo
    remote: tuple[str, int] | None


# Lets a client in by returning None, or says in one line why not.
Admission: TypeAlias = Callable[[Newcomer], Awaitable[str | None]]


@dataclass(slots=True)
class SessionStatistics:
    """Counters of handshakes.

    Attributes:
        started: Connections that asked to speak DERP.
        admitted: Those that the switch took over.
        refused: Those that admission turned away.
        failed: Those that broke the protocol or hung up.
        fast_starts: Started without a 101.
        websockets: Started in a websocket.
    """

    started: int = 0
    admitted: int = 0
    refused: int = 0
    failed: int = 0
    fast_starts: int = 0
    websockets: int = 0


@dataclass(slots=True)
class DerpService:
    """The DERP side of one relay.

    Attributes:
        private_key: The relay's.
        switch: Where admitted clients go.
        admission: All of them have to let a client in; asked one by one.
        statistics: Counted here.
    """

    private_key: NodePrivate
    switch: Switch
    admission: Sequence[Admission] = ()
    statistics: SessionStatistics = field(default_factory=SessionStatistics)
    public_key: NodePublic = field(init=False)
    _upgrade_response: bytes = field(init=False)
    _server_key_frame: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.public_key = self.private_key.public()
        self._upgrade_response = encode_upgrade_response(self.public_key)
        self._server_key_frame = encode_server_key(self.public_key)

    async def serve(
        self,
        wire: Wire,
        received: bytes,
        *,
        remote: tuple[str, int] | None,
        fast_start: bool = False,
        not_ideal: bool = False,
        websocket: WebsocketStream | None = None,
    ) -> None:
        """Shake hands on an upgraded connection, and give it to the switch.

        Runs under the caller's deadline. On return the connection is the
        switch's, or refused and still the caller's to close.

        Args:
            wire: The connection.
            received: Bytes that came behind the request.
            remote: Address and port of the client.
            fast_start: Leave the 101 out.
            not_ideal: The client would rather be elsewhere.
            websocket: The websocket that DERP is in; its 101 has been sent.

        Raises:
            OSError, TlsError: The connection broke.
        """
        self.statistics.started += 1
        self.statistics.fast_starts += fast_start
        self.statistics.websockets += websocket is not None
        bound = log.bind(remote=remote and f"{remote[0]}:{remote[1]}")
        try:
            newcomer, leftover = await self._shake_hands(
                wire, received, remote, websocket, fast_start=fast_start
            )
        except RemoteProtocolError as exc:
            self.statistics.failed += 1
            bound.info("handshake failed", reason=str(exc))
            if websocket is not None and websocket.pending:
                await wire.send(websocket.data_to_send())
            return
        except (OSError, TlsError):
            self.statistics.failed += 1
            raise
        bound = bound.bind(key=newcomer.key.short)
        for admit in self.admission:
            refusal = await admit(newcomer)
            if refusal is not None:
                self.statistics.refused += 1
                bound.info("client refused", reason=refusal)
                return
        hello = Hello(
            key=newcomer.key,
            info=newcomer.info,
            frames=encode_server_info(self.private_key, newcomer.key, ServerInfo()),
            remote=remote,
            not_ideal=not_ideal,
        )
        sock, tls = wire.release()
        self.statistics.admitted += 1
        conn = self.switch.adopt(
            sock, hello, leftover=leftover, tls=tls, websocket=websocket
        )
        bound.debug("client admitted", conn=conn)

    async def _shake_hands(
        self,
        wire: Wire,
        received: bytes,
        remote: tuple[str, int] | None,
        websocket: WebsocketStream | None,
        *,
        fast_start: bool,
    ) -> tuple[Newcomer, bytes]:
        """Exchange ServerKey and ClientInfo.

        Returns:
            The client, and the DERP bytes behind its ClientInfo.
        """
        greeting = self._server_key_frame
        if websocket is not None:
            greeting = websocket.encode(greeting)
        elif not fast_start:
            greeting = self._upgrade_response + greeting
        await wire.send(greeting)
        buffer = FrameBuffer(max_body_len=MAX_CLIENT_INFO_LEN)
        frame: RawFrame | None = None
        while frame is None:
            if received:
                if websocket is not None:
                    received = websocket.receive_data(received)
                    if websocket.pending:
                        await wire.send(websocket.data_to_send())
                    if websocket.closed:
                        raise RemoteProtocolError("the websocket was closed")
                buffer.receive_data(received)
                header = buffer.next_header()
                if header is not None and header[0] != FrameType.CLIENT_INFO:
                    raise RemoteProtocolError("the first frame is not ClientInfo")
                frame = buffer.next_frame()
                if frame is not None:
                    break
            received = await wire.receive()
            if not received:
                raise RemoteProtocolError("the client hung up before ClientInfo")
        key, info = decode_client_info(self.private_key, frame)
        return Newcomer(key, info, remote), buffer.take_rest()
