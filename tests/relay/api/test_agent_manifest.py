from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from relay.api.agent_manifest import build_manifest
from relay.store.model import (
    Agent,
    AgentIdentity,
    App,
    AppHealth,
    NewApp,
    User,
    Workspace,
)
from tailnet.control.proto import agent_pb2, tailnet_pb2

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
OWNER = User(UUID(int=1), "alice", False, NOW)
WORKSPACE = Workspace(UUID(int=2), OWNER.id, "alice", "dev", NOW)
IDENTITY = AgentIdentity(
    Agent(UUID(int=3), WORKSPACE.id, "main", UUID(int=4), NOW), WORKSPACE, OWNER
)
DERP_MAP = tailnet_pb2.DERPMap(home_params=tailnet_pb2.DERPMap.HomeParams())


def manifest_of(*apps: App, **policy: bool) -> agent_pb2.Manifest:
    settings = {"disable_direct": False, "force_websockets": False} | policy
    return build_manifest(IDENTITY, DERP_MAP, apps=apps, **settings)


def app(health: AppHealth = AppHealth.DISABLED, share: str = "owner") -> App:
    return App(UUID(int=5), UUID(int=3), NewApp("web", share=share), health)


def test_ids_are_16_bytes() -> None:
    manifest = manifest_of(app())
    for raw in (manifest.agent_id, manifest.workspace_id, manifest.parent_id):
        assert len(raw) == 16
    assert len(manifest.apps[0].id) == 16


def test_a_map_without_home_params_never_gets_out() -> None:
    with pytest.raises(AssertionError):
        build_manifest(
            IDENTITY,
            tailnet_pb2.DERPMap(),
            disable_direct=False,
            force_websockets=False,
        )


def test_policy() -> None:
    manifest = manifest_of(disable_direct=True, force_websockets=True)
    assert manifest.disable_direct_connections
    assert manifest.derp_force_websockets


@pytest.mark.parametrize("health", AppHealth)
def test_health(health: AppHealth) -> None:
    (made,) = manifest_of(app(health)).apps
    assert agent_pb2.WorkspaceApp.Health.Name(made.health).lower() == health.value
    assert made.HasField("healthcheck")


@pytest.mark.parametrize("share", ["owner", "authenticated", "public", "organization"])
def test_share(share: str) -> None:
    (made,) = manifest_of(app(share=share)).apps
    name = agent_pb2.WorkspaceApp.SharingLevel.Name(made.sharing_level)
    assert name.lower() == share
