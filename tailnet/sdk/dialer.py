"""From nothing to a websocket of the API, again and again.

coder ``workspacesdk/dialer.go`` and ``tailnet/controllers.go``: which refusals
are for good, what becomes of a resume token, how long to wait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlencode

import structlog
import trio

from tailnet.derp.exchange import exchange, read_body
from tailnet.derp.upgrade import first_header
from tailnet.derp.websocket import (
    check_websocket_response,
    encode_websocket_request,
    generate_websocket_key,
)
from tailnet.errors import ApiError, ConfigError, ConnectError, RemoteProtocolError
from tailnet.headers import HttpHeaders, next_headers
from tailnet.sdk.access import TOKEN_HEADER, Access
from tailnet.sdk.link import WebsocketLink, open_link
from tailnet.sdk.models import decode_api_error
from tailnet.sdk.pacing import RedialDelays
from tailnet.sdk.resume import ResumeToken
from tailnet.transport import (
    connect_through,
    host_targets,
    race_tcp,
    start_host_tls,
)

__all__ = (
    "DIAL_TIMEOUT",
    "PERMANENT_STATUSES",
    "Dialed",
    "Dialer",
    "dial_websocket",
)

log = structlog.get_logger("tailnet.sdk")

# Ours, as the DERP client's: seconds from DNS to the answer.
DIAL_TIMEOUT: Final = 10.0

# dialer.go: what the server means, as long as it has never let us in. Later
# the same may be a gateway's, or pass by.
PERMANENT_STATUSES: Final = frozenset({400, 401, 403, 404, 409, 500})

# Of a refusal. Coder's are some hundred bytes.
_MAX_REFUSAL_LEN: Final = 64 << 10
_REFUSAL_TIMEOUT: Final = 1.0

_RESUME_TOKEN: Final = "resume_token"  # noqa: S105 - a parameter's name


@dataclass(frozen=True, slots=True)
class Dialed:
    """A websocket whose handshake is done.

    Attributes:
        stream: Whoever has it, closes it.
        rest: What came behind the server's answer.
    """

    stream: trio.abc.Stream
    rest: bytes = b""

    @asynccontextmanager
    async def open_link(self) -> AsyncIterator[WebsocketLink]:
        """Carry bytes while the block runs; closes the stream."""
        async with open_link(self.stream, self.rest) as link:
            yield link


async def dial_websocket(access: Access, target: str) -> Dialed:
    """Open a websocket without subprotocol, within 10 s.

    Args:
        access: The server.
        target: Path and query, behind its prefix.

    Raises:
        ApiError: The server refused, with a status other than 101.
        ConnectError: Anything else that did not work.
    """
    with trio.move_on_after(DIAL_TIMEOUT):
        headers = await next_headers(access.headers, timeout=DIAL_TIMEOUT)
        stream = await _dial_host(access)
        try:
            return await _open_websocket(stream, access, target, headers)
        except (trio.BrokenResourceError, RemoteProtocolError) as exc:
            await trio.aclose_forcefully(stream)
            raise ConnectError(
                f"{access.url}: {str(exc) or 'the connection broke'}"
            ) from exc
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
    raise ConnectError(f"{access.url}: no connection within {DIAL_TIMEOUT:.0f} s")


async def _dial_host(access: Access) -> trio.abc.Stream:
    try:
        proxy = access.proxies.proxy_for(access.scheme, access.host, access.port)
        if proxy is None:
            stream = await race_tcp(
                host_targets(access.host),
                access.port,
                timeout=DIAL_TIMEOUT,
                connect=access.connect,
            )
        else:
            stream = await connect_through(
                proxy,
                access.host,
                access.port,
                timeout=DIAL_TIMEOUT,
                context=access.tls_context,
                connect=access.connect,
            )
        if access.scheme == "http":
            return stream
        return await start_host_tls(stream, access.host, context=access.tls_context)
    except (ConfigError, ConnectError, OSError) as exc:
        raise ConnectError(f"{access.url}: {exc}") from exc


async def _open_websocket(
    stream: trio.abc.Stream,
    access: Access,
    target: str,
    headers: HttpHeaders,
) -> Dialed:
    key = generate_websocket_key()
    ours = [(TOKEN_HEADER, access.token)] if access.token else []
    request = encode_websocket_request(
        access.authority,
        key,
        headers=[*ours, *headers],
        target=f"{access.prefix}{target}",
        subprotocol=None,
    )
    head = await exchange(stream, request)
    if head.status != 101:
        body = await read_body(
            stream, head, max_len=_MAX_REFUSAL_LEN, timeout=_REFUSAL_TIMEOUT
        )
        content_type = first_header(head.headers, b"Content-Type").decode("latin-1")
        raise decode_api_error(head.status, content_type, body)
    check_websocket_response(head, key, subprotocol=None)
    return Dialed(stream, head.rest)


class Dialer:
    """Dials one endpoint, and waits as long as it must in between.

    Args:
        access: The server.
        path: Of the endpoint.
        version: Of the control protocol that we speak, ``major.minor``.
        random: Returns a number from 0 up to 1, for the delays.
        now: Wall time, with a zone; for the resume token.

    Attributes:
        resume_token: To be sent with the next dial; None for none.
        dials: Times that a connection was tried.
        connects: Those that worked.
        last_failure: Why the last one that did not work did not, for people.
    """

    def __init__(
        self,
        access: Access,
        path: str,
        *,
        version: str,
        random: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._access = access
        self._path = path
        self._version = version
        self._now = now
        self._delays = RedialDelays(random)
        self._connected_at: float | None = None
        self.resume_token: ResumeToken | None = None
        self.dials = 0
        self.connects = 0
        self.last_failure: str | None = None

    async def dial(self) -> Dialed:
        """Connect, however long it takes.

        The first call dials at once, later ones after a delay.

        Raises:
            ApiError: A refusal of PERMANENT_STATUSES, if no dial has worked
                yet.
        """
        if self._connected_at is not None:
            lasted = trio.current_time() - self._connected_at
            await trio.sleep(self._delays.connection_lost(lasted))
        while True:
            token = self._usable_token()
            try:
                dialed = await self._dial_once(token)
            except ApiError as exc:
                failure = str(exc)
                if (
                    token is not None
                    and exc.status == 401
                    and exc.rejects(_RESUME_TOKEN)
                ):
                    # It may have been signed with a key that is no more. The
                    # server does know us; no need to wait.
                    self.resume_token = None
                    self._note_failure(failure, 0.0)
                    continue
                if not self.connects and exc.status in PERMANENT_STATUSES:
                    raise
            except ConnectError as exc:
                failure = str(exc)
            else:
                self.connects += 1
                self._connected_at = trio.current_time()
                return dialed
            delay = self._delays.next_delay()
            self._note_failure(failure, delay)
            await trio.sleep(delay)

    async def _dial_once(self, token: ResumeToken | None) -> Dialed:
        self.dials += 1
        query = {"version": self._version}
        if token is not None:
            query[_RESUME_TOKEN] = token.token
        return await dial_websocket(self._access, f"{self._path}?{urlencode(query)}")

    def _usable_token(self) -> ResumeToken | None:
        token = self.resume_token
        if token is not None and token.expires_at <= self._now():
            token = self.resume_token = None
        return token

    def _note_failure(self, reason: str, delay: float) -> None:
        self.last_failure = reason
        log.info("dial failed", server=self._access.url, reason=reason, retry_in=delay)
