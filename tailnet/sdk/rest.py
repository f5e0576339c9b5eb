"""The requests of Coder's API that a client makes, over kept connections."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

import httpx2
import msgspec
import trio

from tailnet.errors import ConfigError, ConnectError, RemoteProtocolError
from tailnet.headers import next_headers
from tailnet.sdk.access import TOKEN_HEADER, Access
from tailnet.sdk.models import (
    AgentInfo,
    BuildInfo,
    ConnectionInfo,
    UserInfo,
    WorkspaceInfo,
    decode_api_error,
    decode_connection_info,
    decode_model,
    decode_workspace,
)
from tailnet.tls_stream import default_tls_context

__all__ = ("REQUEST_TIMEOUT", "RestClient", "open_rest_client")

# Ours: seconds for a request, its answer included.
REQUEST_TIMEOUT: Final = 30.0

# Ours. A workspace with a hundred agents has some hundred kilobytes.
_MAX_ANSWER_LEN: Final = 16 << 20


@asynccontextmanager
async def open_rest_client(
    access: Access, *, transport: httpx2.AsyncBaseTransport | None = None
) -> AsyncGenerator[RestClient]:
    """Talk to a server's API.

    Redirects are not followed: the token would go with them.

    Args:
        access: The server. Its ``connect`` is not used here.
        transport: In place of the network, for tests.

    Raises:
        ConfigError: The proxy settings are wrong.
    """
    proxy = access.proxies.proxy_for(access.scheme, access.host, access.port)
    context = access.tls_context
    if context is None:
        context = default_tls_context()
    via = None
    if proxy is not None:
        auth = None if proxy.user is None else (proxy.user, proxy.password)
        via = httpx2.Proxy(
            str(proxy), auth=auth, ssl_context=context if proxy.tls else None
        )
    async with httpx2.AsyncClient(
        base_url=access.url,
        transport=transport,
        proxy=via if transport is None else None,
        verify=context,
        trust_env=False,  # the rules above are the environment's
        timeout=None,  # one deadline of ours covers it all
    ) as client:
        yield RestClient(client, access)


class RestClient:
    """Made by :func:`open_rest_client`. Any number of tasks may use it.

    Every method raises ApiError if the server refuses, ConnectError if it
    cannot be reached, and RemoteProtocolError if its answer makes no sense.
    """

    def __init__(self, client: httpx2.AsyncClient, access: Access) -> None:
        self._client = client
        self._access = access

    async def build_info(self) -> BuildInfo:
        """Who the server is; needs no token."""
        return decode_model(await self.get("/api/v2/buildinfo"), BuildInfo)

    async def user(self, name: str = "me") -> UserInfo:
        """A user by name or id; by default whose token it is."""
        return decode_model(await self.get(f"/api/v2/users/{_quoted(name)}"), UserInfo)

    async def connection_info(self, agent_id: UUID | None = None) -> ConnectionInfo:
        """How to reach an agent; None for what holds for all of them.

        Embedded relays are as the server names them, see
        :func:`tailnet.sdk.embedded.rewrite_embedded_relays`.
        """
        middle = "" if agent_id is None else f"/{agent_id}"
        return decode_connection_info(
            await self.get(f"/api/v2/workspaceagents{middle}/connection")
        )

    async def workspace(self, name: str, owner: str = "me") -> WorkspaceInfo:
        """A workspace by its name and its owner's name."""
        return decode_workspace(
            await self.get(
                f"/api/v2/users/{_quoted(owner)}/workspace/{_quoted(name)}",
                include_deleted="false",
            )
        )

    async def agent(self, agent_id: UUID) -> AgentInfo:
        """An agent by its id."""
        return decode_model(
            await self.get(f"/api/v2/workspaceagents/{agent_id}"), AgentInfo
        )

    async def debug_coordinator(self) -> Any:
        """Who is connected to the coordinator, as the server's JSON.

        Coder's own server has it as HTML only: RemoteProtocolError.
        """
        answer = await self.get("/api/v2/debug/coordinator", accept="application/json")
        try:
            return msgspec.json.decode(answer)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
            raise RemoteProtocolError(
                "the server shows its coordinator to browsers only"
            ) from exc

    async def get(self, path: str, *, accept: str = "", **query: str) -> bytes:
        """GET anything.

        Args:
            path: Behind the server's prefix.
            accept: Value of ``Accept``; empty for none.
            query: Parameters.

        Returns:
            The body of the answer, whose status is 200 to 299.
        """
        headers = dict(
            await next_headers(self._access.headers, timeout=REQUEST_TIMEOUT)
        )
        if self._access.token:
            headers[TOKEN_HEADER] = self._access.token
        if accept:
            headers["Accept"] = accept
        with trio.move_on_after(REQUEST_TIMEOUT):
            try:
                async with self._client.stream(
                    "GET", path, params=query, headers=headers
                ) as response:
                    return await self._read(response)
            except (
                httpx2.HTTPError,
                httpx2.StreamError,
                httpx2.InvalidURL,
                OSError,
            ) as exc:
                reason = str(exc) or repr(exc)
                raise ConnectError(f"{self._access.url}: {reason}") from exc
        raise ConnectError(
            f"{self._access.url}: no answer within {REQUEST_TIMEOUT:.0f} s"
        )

    async def _read(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        async with aclosing(response.aiter_bytes()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > _MAX_ANSWER_LEN:
                    raise RemoteProtocolError(
                        f"the server's answer has more than {_MAX_ANSWER_LEN} bytes"
                    )
        if response.is_success:
            return bytes(body)
        if response.is_redirect:
            location = response.headers.get("Location", "")
            raise ConfigError(
                f"{self._access.url} redirects to {location}; use that as the URL"
            )
        content_type = response.headers.get("Content-Type", "")
        raise decode_api_error(response.status_code, content_type, bytes(body))


def _quoted(name: str) -> str:
    return quote(name, safe="")
