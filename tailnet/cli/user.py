"""``tailnet user``: who may connect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import click

from tailnet.cli.command import (
    Group,
    PathOfNames,
    data_dir_option,
    output_option,
)
from tailnet.cli.output import (
    OutputFormat,
    builtins,
    print_fields,
    print_json,
    print_table,
)
from tailnet.cli.state import require_user, run_on_store
from tailnet.errors import StoreError

if TYPE_CHECKING:
    from relay.store.model import ApiKey, NewApiKey, User, Workspace
    from relay.store.store import Store

__all__ = ("user",)

NAME = PathOfNames("NAME", or_uuid=True)


@click.group(cls=Group)
def user() -> None:
    """Users: who owns workspaces and connects to agents."""


@user.command("create")
@click.argument("name")
@click.option("--admin", is_flag=True, help="May use every agent and the debug pages.")
@click.option(
    "--token", metavar="TOKEN", help="The API key to give them; default: a random one."
)
@data_dir_option
@output_option
def _create(
    name: str,
    *,
    admin: bool,
    token: str | None,
    data_dir: Path | None,
    output: OutputFormat,
) -> None:
    """Create the user NAME with an API key, which is shown this once.

    A name has 1 to 32 letters and digits, with single hyphens between them.
    """

    async def command(store: Store) -> tuple[User, NewApiKey]:
        made = await store.create_user(name, is_admin=admin)
        try:
            return made, await store.create_api_key(made.id, token=token)
        except StoreError:
            # A user without the wanted key is not what was asked for.
            await store.delete_user(made.id)
            raise

    made, key = run_on_store(data_dir, command, create=True)
    if output is OutputFormat.JSON:
        print_json(
            {**builtins(made), "api_key_id": key.key.id, "token": key.token},
        )
        return
    print_fields({"user": made.username, "id": made.id, "admin": made.is_admin})
    print_fields({"token": key.token})
    click.echo("The token is not shown again.", err=True)


@user.command("list")
@data_dir_option
@output_option
def _list(data_dir: Path | None, output: OutputFormat) -> None:
    """List the users."""
    found = run_on_store(data_dir, lambda store: store.list_users())
    if output is OutputFormat.JSON:
        print_json(found)
        return
    print_table(
        ("NAME", "ID", "ADMIN", "CREATED"),
        [(u.username, u.id, u.is_admin, u.created_at) for u in found],
    )


@user.command("show")
@click.argument("name", type=NAME)
@data_dir_option
@output_option
def _show(
    name: tuple[str, ...] | UUID, data_dir: Path | None, output: OutputFormat
) -> None:
    """Show the user NAME (or UUID) with their API keys and workspaces."""

    async def command(store: Store) -> tuple[User, list[ApiKey], list[Workspace]]:
        found = await require_user(store, name)
        keys = await store.list_api_keys(found.id)
        return found, keys, await store.list_workspaces(found.id)

    found, keys, workspaces = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json({**builtins(found), "api_keys": keys, "workspaces": workspaces})
        return
    print_fields(
        {
            "user": found.username,
            "id": found.id,
            "admin": found.is_admin,
            "created": found.created_at,
            "workspaces": " ".join(w.name for w in workspaces) or None,
            "API keys": " ".join(key.id for key in keys) or None,
        }
    )


@user.command("delete")
@click.argument("name", type=NAME)
@data_dir_option
@output_option
def _delete(
    name: tuple[str, ...] | UUID, data_dir: Path | None, output: OutputFormat
) -> None:
    """Delete the user NAME (or UUID), who owns no workspace, and their API keys."""

    async def command(store: Store) -> User:
        found = await require_user(store, name)
        await store.delete_user(found.id)
        return found

    gone = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json(gone)
    else:
        print_fields({"deleted user": gone.username})
