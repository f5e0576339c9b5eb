"""``tailnet workspace``: what agents belong to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import click

from tailnet.cli.command import (
    Group,
    PathOfNames,
    UuidType,
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
from tailnet.cli.state import require_user, require_workspace, run_on_store

if TYPE_CHECKING:
    from relay.store.model import Agent, Workspace
    from relay.store.store import Store

__all__ = ("workspace",)

TARGET = PathOfNames("OWNER/WORKSPACE", or_uuid=True)


@click.group(cls=Group)
def workspace() -> None:
    """Workspaces: each belongs to a user and has agents."""


@workspace.command("create")
@click.argument("path", metavar="OWNER/NAME", type=PathOfNames("OWNER/NAME"))
@click.option("--id", "workspace_id", type=UuidType(), help="Default: a random one.")
@data_dir_option
@output_option
def _create(
    path: tuple[str, str],
    workspace_id: UUID | None,
    data_dir: Path | None,
    output: OutputFormat,
) -> None:
    """Create the workspace NAME of the user OWNER.

    A name has 1 to 32 letters and digits, with single hyphens between them.
    """
    owner_name, name = path

    async def command(store: Store) -> Workspace:
        owner = await require_user(store, (owner_name,))
        return await store.create_workspace(owner.id, name, workspace_id=workspace_id)

    made = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json(made)
    else:
        print_fields({"workspace": f"{made.owner_name}/{made.name}", "id": made.id})


@workspace.command("list")
@click.argument("owner", required=False)
@data_dir_option
@output_option
def _list(owner: str | None, data_dir: Path | None, output: OutputFormat) -> None:
    """List the workspaces of OWNER, or of all."""

    async def command(store: Store) -> list[Workspace]:
        if owner is None:
            return await store.list_workspaces()
        user = await require_user(store, (owner,))
        return await store.list_workspaces(user.id)

    found = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json(found)
        return
    print_table(
        ("WORKSPACE", "ID", "CREATED"),
        [(f"{w.owner_name}/{w.name}", w.id, w.created_at) for w in found],
    )


@workspace.command("show")
@click.argument("target", metavar="OWNER/NAME", type=TARGET)
@data_dir_option
@output_option
def _show(
    target: tuple[str, ...] | UUID, data_dir: Path | None, output: OutputFormat
) -> None:
    """Show the workspace OWNER/NAME (or UUID) with its agents."""

    async def command(store: Store) -> tuple[Workspace, list[Agent]]:
        found = await require_workspace(store, target)
        return found, await store.list_agents(found.id)

    found, agents = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json({**builtins(found), "agents": agents})
        return
    print_fields(
        {
            "workspace": f"{found.owner_name}/{found.name}",
            "id": found.id,
            "owner id": found.owner_id,
            "created": found.created_at,
            "agents": " ".join(agent.name for agent in agents) or None,
        }
    )


@workspace.command("delete")
@click.argument("target", metavar="OWNER/NAME", type=TARGET)
@data_dir_option
@output_option
def _delete(
    target: tuple[str, ...] | UUID, data_dir: Path | None, output: OutputFormat
) -> None:
    """Delete the workspace OWNER/NAME (or UUID) and its agents."""

    async def command(store: Store) -> Workspace:
        found = await require_workspace(store, target)
        await store.delete_workspace(found.id)
        return found

    gone = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json(gone)
    else:
        print_fields({"deleted workspace": f"{gone.owner_name}/{gone.name}"})
