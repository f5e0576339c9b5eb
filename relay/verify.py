"""Admission by URL: another server decides who may use the relay.

derper's ``-verify-client-url`` (tailscale ``derpserver.go``, verifyClient;
``tailcfg.DERPAdmitClientRequest``): one POST for each client that has proven
its key::

    {"NodePublic":"nodekey:<hex>","Source":"<ip>"}

and a client is let in if the answer is 200 with ``{"Allow":true}``. Headscale
answers such requests at ``/verify``.

API: :func:`open_url_admission`; what it yields is an
:data:`relay.derp.session.Admission`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

import httpx2
import msgspec
import structlog
import trio

from relay.derp.session import Newcomer

__all__ = ("UrlAdmission", "open_url_admission")

log = structlog.get_logger("relay.derp")

# verifyClient: for the whole exchange, redirects included.
TIMEOUT: Final = 5.0

# verifyClient reads no more of the answer.
MAX_ANSWER_LEN: Final = 4 << 10

# Of net/http's default client.
MAX_REDIRECTS: Final = 10

# Ours: more at once, after a restart say, wait for each other.
MAX_CONNECTIONS: Final = 128


@asynccontextmanager
async def open_url_admission(
    url: str, *, is_fail_open: bool, transport: httpx2.AsyncBaseTransport | None = None
) -> AsyncIterator[UrlAdmission]:
    """Ask ``url`` about clients, over connections that are kept.

    Args:
        url: Of the admission controller.
        is_fail_open: Let clients in while it cannot be reached.
        transport: In place of the network, for tests. The proxies that the
            environment names are used otherwise, as derper does.
    """
    async with httpx2.AsyncClient(
        transport=transport,
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        timeout=None,  # one deadline of ours covers it all
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS),
    ) as client:
        yield UrlAdmission(client, url, is_fail_open=is_fail_open)


class UrlAdmission:
    """Asks an admission controller about each client."""

    def __init__(
        self, client: httpx2.AsyncClient, url: str, *, is_fail_open: bool
    ) -> None:
        self._client = client
        self._url = url
        self._is_fail_open = is_fail_open
        self._slots = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def __call__(self, newcomer: Newcomer) -> str | None:
        """Let a client in by returning None, or say in one line why not."""
        question = {
            "NodePublic": str(newcomer.key),
            "Source": newcomer.remote[0] if newcomer.remote else "",
        }
        request = self._client.build_request(
            "POST", self._url, content=msgspec.json.encode(question)
        )
        # Waiting for a connection of ours is no fault of the controller's, so
        # it is not in the time after which clients are let in. It ends with
        # the deadline of the client's handshake.
        async with self._slots:
            return await self._ask(request, newcomer)

    async def _ask(self, request: httpx2.Request, newcomer: Newcomer) -> str | None:
        with trio.move_on_after(TIMEOUT) as scope:
            try:
                response = await self._client.send(request, stream=True)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as exc:
                return self._unreachable(newcomer, repr(exc))
            # From here on it was reached, and what fails counts against the
            # client.
            try:
                return await _judge(response)
            except (httpx2.HTTPError, httpx2.StreamError, OSError) as exc:
                return f"admission controller: {exc!r}"
            finally:
                with trio.move_on_after(1, shield=True):
                    await response.aclose()
        assert scope.cancelled_caught
        return self._unreachable(newcomer, f"no answer in {TIMEOUT:g} s")

    def _unreachable(self, newcomer: Newcomer, reason: str) -> str | None:
        if not self._is_fail_open:
            return f"admission controller unreachable: {reason}"
        log.warning(
            "admission controller unreachable; client admitted",
            key=newcomer.key.short,
            reason=reason,
        )
        return None


async def _judge(response: httpx2.Response) -> str | None:
    if response.status_code != 200:
        return f"admission controller: {response.status_code} {response.reason_phrase}"
    answer = b""
    async with aclosing(response.aiter_bytes()) as chunks:
        async for chunk in chunks:
            answer += chunk
            if len(answer) >= MAX_ANSWER_LEN:
                break
    return None if _allows(answer[:MAX_ANSWER_LEN]) else "admission controller: no"


def _allows(answer: bytes) -> bool:
    """Read the answer as Go would: the first JSON value of it, any case."""
    try:
        value, _ = json.JSONDecoder().raw_decode(answer.decode().lstrip())
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return False
    allow = None
    for name, given in value.items():
        if name.lower() == "allow":
            allow = given
    return allow is True
