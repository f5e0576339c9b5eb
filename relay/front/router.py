"""Who is this connection for? TLS, HTTP head, then DERP or a page.

One task serves one connection until it is closed or the switch has taken it.
Everything a client can do wrong ends in that task.
"""

from __future__ import annotations

import math
import ssl
import urllib.parse
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from socket import socket
from typing import Final

import structlog
import trio

from relay.derp.session import DerpService
from relay.front.application import Application, Takeover
from relay.front.http import (
    HttpError,
    HttpReader,
    HttpRequest,
    encode_answer,
    encode_switch,
)
from relay.front.listeners import peer_address
from relay.front.tls import PureTls, TlsError
from relay.front.wire import Wire
from relay.pages.page import Request, Response, go_error
from tailnet.derp.upgrade import (
    DERP_PATH,
    UpgradeKind,
    UpgradeRequest,
    decode_upgrade_request,
)
from tailnet.derp.websocket import (
    CLOSE_POLICY_VIOLATION,
    MUST_SPEAK_DERP,
    WebsocketAnswer,
    WebsocketStream,
    check_websocket_request,
)

__all__ = ("HANDSHAKE_TIMEOUT", "Front", "FrontStatistics")

log = structlog.get_logger("relay.front")

# From accept to adoption, or to the first whole request. derper gives 30 s to
# TLS and HTTP, and 10 s more to each half of the DERP handshake.
HANDSHAKE_TIMEOUT: Final = 10.0

# Between two requests of one connection (derper: ReadTimeout).
IDLE_TIMEOUT: Final = 30.0

# net/http server.go, tlsRecordHeaderLooksLikeHTTP: the words are Go's.
_HTTP_ON_TLS: Final = (
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
)


@dataclass(slots=True)
class FrontStatistics:
    """Counters of one port.

    Attributes:
        requests_by_tls: HTTP requests, by ``TLSv1.3`` and so on.
        tls_failures: Connections that got no further than TLS.
    """

    requests_by_tls: dict[str, int] = field(default_factory=dict)
    tls_failures: int = 0


async def _no_page(_request: Request) -> Response:
    return go_error(404, "404 page not found")


@dataclass(slots=True)
class Front:
    """The rooms behind one port.

    Attributes:
        derp: Serves upgrades of ``/derp``; None if this port has no DERP.
        pages: Answers every other request, or takes its connection over.
        tls_context: Returns the context for the next connection, or None if
            the port is plain.
        headers: For answers to websocket upgrades of ``/derp``.
        statistics: Counted here.
    """

    derp: DerpService | None
    pages: Application = _no_page
    tls_context: Callable[[], ssl.SSLContext] | None = None
    headers: tuple[tuple[str, str], ...] = ()
    statistics: FrontStatistics = field(default_factory=FrontStatistics)
    _is_draining: bool = False
    _idle: set[trio.CancelScope] = field(default_factory=set)

    def drain(self) -> None:
        """Let requests finish, and hang up on who is between two of them."""
        self._is_draining = True
        for scope in self._idle:
            scope.cancel()

    async def serve(self, sock: socket) -> None:
        """Serve one accepted connection; never raises for what it does.

        Args:
            sock: Connected and non-blocking. It is closed on return, unless
                the switch has it.
        """
        remote = peer_address(sock)
        tls = None if self.tls_context is None else PureTls(self.tls_context())
        wire = Wire(sock, tls)
        try:
            with trio.move_on_after(HANDSHAKE_TIMEOUT) as deadline:
                await wire.start_tls()
                talk = await self._serve_requests(wire, remote, deadline)
                if talk is not None:
                    deadline.deadline = math.inf
                    await talk()
        except TlsError as exc:
            self.statistics.tls_failures += 1
            if exc.args == ("HTTP_REQUEST",):
                wire.try_send_plain(_HTTP_ON_TLS)
            log.debug("TLS failed", remote=remote, reason=str(exc))
        except OSError as exc:
            log.debug("connection broke", remote=remote, reason=exc.strerror)
        except Exception:
            # A bug, and no reason to end everyone else's connections.
            log.exception("a bug ends a connection", remote=remote)
        finally:
            wire.close()

    async def _serve_requests(
        self, wire: Wire, remote: tuple[str, int] | None, deadline: trio.CancelScope
    ) -> Callable[[], Awaitable[None]] | None:
        """Serve requests until there are no more, or one takes over.

        Returns:
            What took over, for the caller to run: a conversation of hours
            should not keep the parser of its request.
        """
        reader = HttpReader()
        first = True
        version = None if wire.tls is None else wire.tls.version
        while True:
            try:
                head = await self._next_request(wire, reader)
                request = (
                    None
                    if head is None
                    else _to_request(head, remote, tls=version is not None)
                )
            except HttpError as exc:
                log.debug("bad request", remote=remote, reason=str(exc))
                await wire.send(exc.answer())
                await wire.linger()
                return None
            if head is None or request is None:
                return None
            if version is not None:
                counts = self.statistics.requests_by_tls
                counts[version] = counts.get(version, 0) + 1
            derp = self.derp
            upgrade = decode_upgrade_request(head.headers)
            if (
                derp is None
                or request.path != DERP_PATH
                or upgrade.kind is UpgradeKind.NONE
            ):
                answer = await self.pages(request)
                if isinstance(answer, Takeover):
                    return partial(answer.serve, wire, reader.take_rest())
                response = answer
            elif (
                upgrade.kind is UpgradeKind.WEBSOCKET
                and (judged := _judge_websocket(head)).status != 101
            ):
                refusal = go_error(judged.status, judged.text)
                response = replace(
                    refusal,
                    headers=(*judged.text_headers(), *refusal.headers, *self.headers),
                )
            else:
                if not first:  # the deadline was that of an idle one
                    deadline.deadline = trio.current_time() + HANDSHAKE_TIMEOUT
                await _serve_derp(
                    derp, wire, reader, head, upgrade, remote, self.headers
                )
                return None
            keep_alive = (
                head.keep_alive and not response.close and not self._is_draining
            )
            await wire.send(
                encode_answer(
                    response.status,
                    response.headers,
                    response.body,
                    request=head,
                    keep_alive=keep_alive,
                )
            )
            if not keep_alive:
                return None
            first = False
            reader.next_cycle()
            deadline.deadline = trio.current_time() + IDLE_TIMEOUT

    async def _next_request(self, wire: Wire, reader: HttpReader) -> HttpRequest | None:
        while True:
            head = reader.next_request()
            if head is not None:
                return head
            with trio.CancelScope() as idle:
                if reader.is_idle:
                    if self._is_draining:
                        return None
                    self._idle.add(idle)
                try:
                    data = await wire.receive()
                finally:
                    self._idle.discard(idle)
            if idle.cancelled_caught or not data:
                return None
            reader.receive_data(data)


def _judge_websocket(head: HttpRequest) -> WebsocketAnswer:
    return check_websocket_request(
        head.headers, head.method.encode("latin-1"), http_version=head.http_version
    )


async def _serve_derp(
    derp: DerpService,
    wire: Wire,
    reader: HttpReader,
    head: HttpRequest,
    upgrade: UpgradeRequest,
    remote: tuple[str, int] | None,
    headers: tuple[tuple[str, str], ...],
) -> None:
    websocket = None
    if upgrade.kind is UpgradeKind.WEBSOCKET:
        answer = _judge_websocket(head)
        await wire.send(encode_switch((*answer.text_headers(), *headers)))
        websocket = WebsocketStream(server=True)
        if not answer.speaks_derp:
            websocket.close(CLOSE_POLICY_VIOLATION, MUST_SPEAK_DERP)
            await wire.send(websocket.data_to_send())
            return
    await derp.serve(
        wire,
        reader.take_rest(),
        remote=remote,
        fast_start=upgrade.fast_start,
        not_ideal=bool(upgrade.ideal_node),
        websocket=websocket,
    )


def _to_request(
    head: HttpRequest, remote: tuple[str, int] | None, *, tls: bool
) -> Request:
    """Read the target of a request.

    Raises:
        HttpError: It is a URI, and a broken one.
    """
    target = head.target
    if "://" in target and not target.startswith("/"):
        # RFC 9112 3.2: a whole URI, which only proxies send.
        try:
            parts = urllib.parse.urlsplit(target)
        except ValueError as exc:
            raise HttpError(400, f"malformed URI: {exc}") from None
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    path, _, query = target.partition("?")
    return Request(
        method=head.method,
        target=target,
        path=urllib.parse.unquote(path),
        query=query,
        headers=head.headers,
        remote=remote,
        tls=tls,
        body=head.body,
        http_version=head.http_version,
    )
