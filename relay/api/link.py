"""A websocket of the API as a byte stream, and the heart beat that watches it."""

from __future__ import annotations

import urllib.parse
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
import trio

from relay.front.application import Takeover
from relay.front.http import encode_switch
from relay.front.tls import TlsError
from relay.front.wire import Wire
from relay.pages.page import Request, Response, go_error
from tailnet.control.link import CLOSE_GOING_AWAY, CLOSE_NORMAL
from tailnet.derp.websocket import (
    WebsocketAnswer,
    WebsocketStream,
    check_websocket_request,
)
from tailnet.errors import LocalProtocolError, RemoteProtocolError

__all__ = (
    "Heartbeats",
    "WebsocketLink",
    "accept_websocket",
    "send_only",
)

log = structlog.get_logger("relay.api")

# coder coderd/httpapi/websocket.go HeartbeatInterval. A Pong has as long.
HEARTBEAT_INTERVAL: Final = 15.0

# For the last words on a connection that is to be closed.
CLOSE_TIMEOUT: Final = 5.0


class WebsocketLink:
    """The server's end of a websocket, as bytes without message boundaries.

    Args:
        wire: The connection; the 101 has been sent.
        received: Bytes that came behind the request.
    """

    __slots__ = ("_early", "_scope", "_websocket", "_wire", "pinged_at_pong")

    def __init__(self, wire: Wire, received: bytes) -> None:
        self._wire = wire
        self._early = received
        self._websocket = WebsocketStream(server=True)
        self._scope: trio.CancelScope | None = None
        # Pongs there were when the last Ping went out; None if none is out.
        self.pinged_at_pong: int | None = None

    async def receive(self) -> bytes:
        """The next bytes; ``b""`` when the client has closed the websocket.

        Raises:
            RemoteProtocolError: The client broke the rules of websockets; it
                has been told.
            OSError: The connection broke.
        """
        websocket = self._websocket
        while not websocket.closed:
            if self._early:
                data, self._early = self._early, b""
            else:
                try:
                    data = await self._wire.receive()
                except TlsError as exc:
                    raise RemoteProtocolError(f"TLS: {exc}") from exc
            if not data:
                return b""
            try:
                payload = websocket.receive_data(data)
            finally:
                if websocket.pending:
                    self._wire.send_nowait(websocket.data_to_send())
            if payload:
                return payload
        return b""

    def send_nowait(self, data: bytes) -> None:
        """Send what fits now, and keep the rest; dropped after a close."""
        try:
            data = self._websocket.encode(data)
        except LocalProtocolError:
            return
        self._wire.send_nowait(data)

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._wire.unsent

    async def flush(self) -> None:
        """Wait until nothing is unsent.

        Raises:
            OSError: The connection broke.
        """
        await self._wire.flush()

    async def aclose(self, code: int = CLOSE_NORMAL, reason: str = "") -> None:
        """Say why the websocket ends, if its end was not said already."""
        self._say_close(code, reason)
        with trio.move_on_after(CLOSE_TIMEOUT):
            try:
                await self._wire.flush()
            except OSError:
                pass  # who broke it knows

    def fail(self, code: int, reason: str) -> None:
        """End the conversation from outside the task that serves it."""
        self._say_close(code, reason)
        if self._scope is not None:
            self._scope.cancel()

    def _say_close(self, code: int, reason: str) -> None:
        self._websocket.close(code, reason)
        if self._websocket.pending:
            self._wire.send_nowait(self._websocket.data_to_send())

    @property
    def pongs(self) -> int:
        return self._websocket.pongs

    def ping(self) -> None:
        """Ask the client whether it is still there."""
        try:
            ping = self._websocket.encode_ping()
        except LocalProtocolError:
            return
        self._wire.send_nowait(ping)

    @contextmanager
    def failing_here(self) -> Iterator[None]:
        """The block that :meth:`fail` ends."""
        with trio.CancelScope() as self._scope:
            yield
        self._scope = None


@dataclass(slots=True)
class Heartbeats:
    """Pings every websocket of the server, in one task for all of them.

    A task for each would cost more memory than the rest of an idle client.

    Attributes:
        interval: Seconds between two Pings; a Pong has as long to come.
    """

    interval: float = HEARTBEAT_INTERVAL
    _queue: deque[tuple[float, WebsocketLink]] = field(default_factory=deque)
    _watched: set[WebsocketLink] = field(default_factory=set)
    _first: trio.Event = field(default_factory=trio.Event)

    @contextmanager
    def watch(self, link: WebsocketLink) -> Iterator[None]:
        """Ping ``link`` during the block, and end the block if it is dead."""
        self._watched.add(link)
        self._push(link)
        try:
            with link.failing_here():
                yield
        finally:
            self._watched.discard(link)

    def _push(self, link: WebsocketLink) -> None:
        self._queue.append((trio.current_time() + self.interval, link))
        self._first.set()

    def close_all(self, code: int, reason: str) -> None:
        """End every conversation that is watched."""
        for link in list(self._watched):
            link.fail(code, reason)

    async def run(self) -> None:
        """Do it, until cancelled."""
        while True:
            if not self._queue:
                self._first = trio.Event()
                await self._first.wait()
            due, link = self._queue.popleft()
            await trio.sleep_until(due)
            if link not in self._watched:
                continue
            if link.pinged_at_pong is not None and link.pongs <= link.pinged_at_pong:
                log.info("a websocket does not answer pings and is closed")
                link.fail(CLOSE_GOING_AWAY, "Ping failed")
                continue
            link.pinged_at_pong = link.pongs
            link.ping()
            self._push(link)


def accept_websocket(
    request: Request,
    heartbeats: Heartbeats,
    serve: Callable[[WebsocketLink], Awaitable[None]],
    *,
    headers: tuple[tuple[str, str], ...] = (),
) -> Response | Takeover:
    """Turn a request into a websocket, if it asks for one.

    Args:
        request: A GET.
        heartbeats: Watch the websocket.
        serve: Talks; the websocket is closed normally when it returns, if it
            has not closed it in another way.
        headers: More of them for the 101.
    """
    judged = check_websocket_request(
        request.headers,
        request.method.encode("latin-1"),
        http_version=request.http_version,
        subprotocol=None,
    )
    if judged.status == 101:
        judged = _judge_origin(request) or judged
    if judged.status != 101:
        refusal = go_error(judged.status, judged.text)
        return replace(refusal, headers=(*judged.text_headers(), *refusal.headers))
    path = request.path  # the rest of the request is not kept
    switch = encode_switch((*judged.text_headers(), *headers))

    async def run(wire: Wire, rest: bytes) -> None:
        await wire.send(switch)
        link = WebsocketLink(wire, rest)
        with heartbeats.watch(link):
            try:
                await serve(link)
            except (OSError, RemoteProtocolError) as exc:
                log.info("a websocket broke", path=path, reason=str(exc))
            await link.aclose()
        await wire.linger()

    return Takeover(run)


async def send_only(
    link: WebsocketLink, send: Callable[[WebsocketLink], Awaitable[None]]
) -> None:
    """Send to a client that has nothing to say, until it closes.

    Args:
        link: Is read meanwhile, so that pings and the end are noticed.
        send: Sends; ends when the client does.

    Raises:
        RemoteProtocolError: The client broke the rules of websockets.
    """
    fault: RemoteProtocolError | None = None
    async with trio.open_nursery() as nursery:

        async def ignore() -> None:
            nonlocal fault
            try:
                while await link.receive():
                    pass
            except OSError:
                pass  # this was its last word
            except RemoteProtocolError as exc:
                fault = exc
            nursery.cancel_scope.cancel()

        nursery.start_soon(ignore)
        try:
            await send(link)
        except OSError:
            pass  # as above
        nursery.cancel_scope.cancel()
    if fault is not None:
        raise fault


def _judge_origin(request: Request) -> WebsocketAnswer | None:
    """accept.go authenticateOrigin: a page of another site gets nothing.

    A browser sends its cookies along with any site's websocket.
    """
    origin = request.header("origin")
    if not origin:
        return None
    host = request.header("host")
    try:
        theirs = urllib.parse.urlsplit(origin).netloc
    except ValueError as exc:
        return WebsocketAnswer(
            403, text=f'failed to parse Origin header "{origin}": {exc}'
        )
    if theirs.lower() == host.lower():
        return None
    if not theirs:
        return WebsocketAnswer(
            403, text=f'request Origin "{origin}" is not a valid URL with a host'
        )
    return WebsocketAnswer(
        403, text=f'request Origin "{theirs}" is not authorized for Host "{host}"'
    )
