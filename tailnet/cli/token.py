"""``tailnet token``: API keys of users."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import click

from tailnet.cli.command import (
    DurationType,
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

if TYPE_CHECKING:
    from relay.store.model import ApiKey, NewApiKey
    from relay.store.store import Store

__all__ = ("token",)

USER = PathOfNames("USER", or_uuid=True)


@click.group(cls=Group)
def token() -> None:
    """API keys, with which users connect. An agent's: tailnet agent renew-token."""


@token.command("create")
@click.argument("user", type=USER)
@click.option("--name", default="", help="What it is for.")
@click.option(
    "--expires-in", type=DurationType(), help="Such as 12h or 30d; default: never."
)
@click.option("--token", "wanted", metavar="TOKEN", help="Default: a random one.")
@data_dir_option
@output_option
def _create(
    user: tuple[str, ...] | UUID,
    name: str,
    expires_in: timedelta | None,
    wanted: str | None,
    data_dir: Path | None,
    output: OutputFormat,
) -> None:
    """Create an API key of USER, which is shown this once."""
    expires_at = None if expires_in is None else datetime.now(UTC) + expires_in

    async def command(store: Store) -> NewApiKey:
        owner = await require_user(store, user)
        return await store.create_api_key(
            owner.id, token=wanted, name=name, expires_at=expires_at
        )

    made = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json({**builtins(made.key), "token": made.token})
        return
    print_fields(
        {
            "user": made.key.username,
            "id": made.key.id,
            "expires": made.key.expires_at,
            "token": made.token,
        }
    )
    click.echo("The token is not shown again.", err=True)


@token.command("list")
@click.argument("user", required=False, type=USER)
@data_dir_option
@output_option
def _list(
    user: tuple[str, ...] | UUID | None, data_dir: Path | None, output: OutputFormat
) -> None:
    """List the API keys of USER, or all, without their secrets."""

    async def command(store: Store) -> list[ApiKey]:
        if user is None:
            return await store.list_api_keys()
        owner = await require_user(store, user)
        return await store.list_api_keys(owner.id)

    found = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    print_table(
        ("ID", "USER", "NAME", "CREATED", "EXPIRES"),
        [(k.id, k.username, k.name, k.created_at, k.expires_at) for k in found],
    )


@token.command("revoke")
@click.argument("key_id", metavar="ID")
@data_dir_option
@output_option
def _revoke(key_id: str, data_dir: Path | None, output: OutputFormat) -> None:
    """Revoke the API key ID: the first ten characters of its token."""
    run_on_store(data_dir, lambda store: store.delete_api_key(key_id))
    if output is OutputFormat.JSON:
        print_json({"id": key_id})
    else:
        print_fields({"revoked": key_id})
