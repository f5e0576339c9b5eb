"""``tailnet agent``: the nodes that users connect to.

The JSON of ``agent show`` is a contract: docs/reference/agent-show.md.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
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
from tailnet.cli.state import (
    require_agent,
    require_user,
    require_workspace,
    run_on_store,
)
from tailnet.errors import NotFoundError

if TYPE_CHECKING:
    from relay.store.model import Agent, AgentIdentity, NewAgent, Workspace
    from relay.store.report_model import AgentReports
    from relay.store.store import Store

__all__ = ("agent",)

FORM = "OWNER/WORKSPACE/AGENT"
TARGET = PathOfNames(FORM, or_uuid=True)


@click.group(cls=Group)
def agent() -> None:
    """Agents: the nodes that users connect to."""


@agent.command("create")
@click.argument("path", metavar=FORM, type=PathOfNames(FORM))
@click.option("--id", "agent_id", type=UuidType(), help="Default: a random one.")
@click.option("--token", type=UuidType(), help="Default: a random one.")
@data_dir_option
@output_option
def _create(
    path: tuple[str, str, str],
    agent_id: UUID | None,
    token: UUID | None,
    data_dir: Path | None,
    output: OutputFormat,
) -> None:
    """Create an agent with a token, which is shown this once.

    A name has 1 to 32 letters and digits, with single hyphens between them.
    """

    async def command(store: Store) -> tuple[NewAgent, Workspace]:
        workspace = await require_workspace(store, path[:2])
        made = await store.create_agent(
            workspace.id, path[2], agent_id=agent_id, token=token
        )
        return made, workspace

    made, workspace = run_on_store(data_dir, command)
    _print_with_token(made, workspace, output)


@agent.command("renew-token")
@click.argument("target", metavar=FORM, type=TARGET)
@data_dir_option
@output_option
def _renew_token(
    target: tuple[str, ...] | UUID, data_dir: Path | None, output: OutputFormat
) -> None:
    """Give an agent (names or UUID) another token; the old one is void."""

    async def command(store: Store) -> tuple[NewAgent, Workspace]:
        found = await require_agent(store, target)
        renewed = await store.renew_agent_token(found.id)
        return renewed, await require_workspace(store, found.workspace_id)

    renewed, workspace = run_on_store(data_dir, command)
    _print_with_token(renewed, workspace, output)


def _print_with_token(
    made: NewAgent, workspace: Workspace, output: OutputFormat
) -> None:
    if output is OutputFormat.JSON:
        print_json({**_as_json(made.agent, workspace), "token": made.token})
        return
    path = f"{workspace.owner_name}/{workspace.name}/{made.agent.name}"
    print_fields({"agent": path, "id": made.agent.id, "token": made.token})
    click.echo("The token is not shown again.", err=True)


@agent.command("list")
@click.argument("where", metavar="[OWNER[/WORKSPACE]]", required=False)
@data_dir_option
@output_option
def _list(where: str | None, data_dir: Path | None, output: OutputFormat) -> None:
    """List the agents of OWNER, or of a workspace, or all."""
    names = tuple((where or "").split("/")) if where is not None else ()
    if len(names) > 2 or not all(names):
        raise click.BadParameter(f"{where!r} is not OWNER or OWNER/WORKSPACE")

    async def command(store: Store) -> list[tuple[Workspace, Agent]]:
        if len(names) == 2:
            workspaces = [await require_workspace(store, names)]
        elif names:
            owner = await require_user(store, names)
            workspaces = await store.list_workspaces(owner.id)
        else:
            workspaces = await store.list_workspaces()
        return [
            (workspace, found)
            for workspace in workspaces
            for found in await store.list_agents(workspace.id)
        ]

    pairs = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json([_as_json(found, workspace) for workspace, found in pairs])
        return
    print_table(
        ("AGENT", "ID", "STATUS", "LIFECYCLE"),
        [
            (
                f"{workspace.owner_name}/{workspace.name}/{found.name}",
                found.id,
                _status(found),
                found.lifecycle and found.lifecycle.state,
            )
            for workspace, found in pairs
        ],
    )


@agent.command("show")
@click.argument("target", metavar=FORM, type=TARGET)
@data_dir_option
@output_option
def _show(
    target: tuple[str, ...] | UUID, data_dir: Path | None, output: OutputFormat
) -> None:
    """Show an agent (names or UUID); -o json adds all that it reported."""

    async def command(
        store: Store,
    ) -> tuple[AgentIdentity, list[Agent], AgentReports]:
        found = await require_agent(store, target)
        identity = await store.agent_identity(found.id)
        subs = await store.list_sub_agents(found.id)
        reports = await store.agent_reports(found.id)
        if identity is None or reports is None:
            raise NotFoundError(f"the agent {found.id} was deleted just now")
        return identity, subs, reports

    identity, subs, reports = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json(
            {
                **_as_json(identity.agent, identity.workspace),
                "sub_agents": subs,
                **builtins(reports),
                "logs": [
                    {"source_id": stored.source_id, **builtins(stored.line)}
                    for stored in reports.logs
                ],
                "apps": [
                    {"id": app.id, **builtins(app.settings), "health": app.health}
                    for app in reports.apps
                ],
            }
        )
    else:
        _show_text(identity, subs, reports)


def _show_text(
    identity: AgentIdentity, subs: list[Agent], reports: AgentReports
) -> None:
    found, workspace = identity.agent, identity.workspace
    last = reports.stats[-1] if reports.stats else None
    print_fields(
        {
            "agent": f"{workspace.owner_name}/{workspace.name}/{found.name}",
            "id": found.id,
            "parent id": found.parent_id,
            "sub-agents": " ".join(sub.name for sub in subs) or None,
            "created": found.created_at,
            "status": _status(found),
            "first connected": found.first_connected_at,
            "last connected": found.last_connected_at,
            "disconnected": found.disconnected_at,
            "lifecycle": found.lifecycle and found.lifecycle.state,
            "version": found.startup and found.startup.version,
            "directory": (found.startup and found.startup.expanded_directory)
            or found.directory
            or None,
            "connections": last and last.connection_count,
            "sessions": last
            and (" ".join(f"{k}={n}" for k, n in last.session_counts.items()) or None),
            "apps": " ".join(
                f"{app.settings.slug}={app.health}" for app in reports.apps
            )
            or None,
            "log lines": len(reports.logs),
            "logs overflowed": reports.logs_overflowed or None,
        }
    )


@agent.command("delete")
@click.argument("target", metavar=FORM, type=TARGET)
@data_dir_option
@output_option
def _delete(
    target: tuple[str, ...] | UUID, data_dir: Path | None, output: OutputFormat
) -> None:
    """Delete an agent (names or UUID), its sub-agents and their reports."""

    async def command(store: Store) -> tuple[Agent, Workspace]:
        found = await require_agent(store, target)
        workspace = await require_workspace(store, found.workspace_id)
        await store.delete_agent(found.id)
        return found, workspace

    gone, workspace = run_on_store(data_dir, command)
    if output is OutputFormat.JSON:
        print_json(_as_json(gone, workspace))
    else:
        path = f"{workspace.owner_name}/{workspace.name}/{gone.name}"
        print_fields({"deleted agent": path})


def _as_json(found: Agent, workspace: Workspace) -> dict[str, Any]:
    return {
        **builtins(found),
        "owner_id": workspace.owner_id,
        "owner_name": workspace.owner_name,
        "workspace_name": workspace.name,
        "status": _status(found),
    }


def _status(found: Agent) -> str:
    from relay.store.model import connection_status

    return connection_status(found, datetime.now(UTC))
