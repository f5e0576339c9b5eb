"""The manifest: what an agent is told of itself when it starts.

What a real agent breaks on (coder ``codersdk/agentsdk/convert.go``): ids that
are not 16 bytes, an app without a health check, enum values that it does not
know, and a DERP map without ``home_params``.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from relay.store.model import AgentIdentity, App, AppHealth
from tailnet.control.proto import agent_pb2, tailnet_pb2

__all__ = ("build_manifest",)

_SHARES = {
    "owner": agent_pb2.WorkspaceApp.OWNER,
    "authenticated": agent_pb2.WorkspaceApp.AUTHENTICATED,
    "public": agent_pb2.WorkspaceApp.PUBLIC,
    "organization": agent_pb2.WorkspaceApp.ORGANIZATION,
}
_HEALTH = {
    AppHealth.DISABLED: agent_pb2.WorkspaceApp.DISABLED,
    AppHealth.INITIALIZING: agent_pb2.WorkspaceApp.INITIALIZING,
    AppHealth.HEALTHY: agent_pb2.WorkspaceApp.HEALTHY,
    AppHealth.UNHEALTHY: agent_pb2.WorkspaceApp.UNHEALTHY,
}


def build_manifest(
    identity: AgentIdentity,
    derp_map: tailnet_pb2.DERPMap,
    *,
    disable_direct: bool,
    force_websockets: bool,
    apps: Iterable[App] = (),
) -> agent_pb2.Manifest:
    """Build the manifest of an agent.

    Args:
        identity: The agent, its workspace and its owner.
        derp_map: Of this moment, with ``home_params``.
        disable_direct: The server allows relayed paths only.
        force_websockets: DERP is to go in websockets at once.
        apps: Those of the agent.
    """
    agent, workspace = identity.agent, identity.workspace
    assert derp_map.HasField("home_params")  # its absence ends a Go agent
    return agent_pb2.Manifest(
        agent_id=agent.id.bytes,
        agent_name=agent.name,
        owner_username=identity.owner.username,
        workspace_id=workspace.id.bytes,
        workspace_name=workspace.name,
        directory=agent.directory,
        disable_direct_connections=disable_direct,
        derp_force_websockets=force_websockets,
        derp_map=derp_map,
        apps=[_app(app) for app in apps],
        parent_id=None if agent.parent_id is None else agent.parent_id.bytes,
    )


def _app(app: App) -> agent_pb2.WorkspaceApp:
    settings = app.settings
    return agent_pb2.WorkspaceApp(
        id=app.id.bytes,
        url=settings.url,
        external=settings.external,
        slug=settings.slug,
        display_name=settings.display_name,
        command=settings.command,
        icon=settings.icon,
        subdomain=settings.subdomain,
        sharing_level=_SHARES[settings.share],
        healthcheck=agent_pb2.WorkspaceApp.Healthcheck(
            url=settings.healthcheck_url,
            interval=Duration(seconds=settings.healthcheck_interval),
            threshold=settings.healthcheck_threshold,
        ),
        health=_HEALTH[app.health],
        hidden=settings.hidden,
    )
