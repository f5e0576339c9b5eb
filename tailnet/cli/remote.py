"""Asking a server, for commands that need its API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from tailnet.cli.login import Login
    from tailnet.sdk.access import Access
    from tailnet.sdk.rest import RestClient

__all__ = ("access_of", "run_on_server")

ResultT = TypeVar("ResultT")


def access_of(login: Login) -> Access:
    """How to reach the server of a login, by the proxies of the environment."""
    import os

    from tailnet.proxy import ProxyRules
    from tailnet.sdk.access import Access

    return Access.parse(
        login.url, login.token, proxies=ProxyRules.from_environment(os.environ)
    )


def run_on_server(
    login: Login, command: Callable[[RestClient], Awaitable[ResultT]]
) -> ResultT:
    """Run an async function on a server's API.

    Args:
        login: The server and the token.
        command: Gets the API.

    Raises:
        TailnetError: The server cannot be reached, or refuses.
    """
    from tailnet.sdk.rest import open_rest_client

    async def run() -> ResultT:
        async with open_rest_client(access_of(login)) as client:
            return await command(client)

    return trio.run(run)
