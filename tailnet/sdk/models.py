"""What the server says in JSON, as far as we need it.

Names: coder ``codersdk``. Fields that are not here are ignored, and what a
server leaves out is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from tailnet.derp.derpmap import DERPMap, decode_derp_map
from tailnet.errors import ApiError, DERPMapError, RemoteProtocolError

__all__ = (
    "AgentInfo",
    "BuildInfo",
    "ConnectionInfo",
    "UserInfo",
    "WorkspaceInfo",
    "decode_api_error",
    "decode_connection_info",
    "decode_model",
    "decode_workspace",
)

# Of a text that is not the JSON it should be; it goes into a message.
_MAX_QUOTED_LEN: Final = 512

ModelT = TypeVar("ModelT")


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """Who the server is (codersdk/deployment.go BuildInfoResponse).

    Attributes:
        version: Of the server.
        agent_api_version: ``major.minor`` of the control protocol; empty for
            old servers.
        deployment_id: The same for all servers of a deployment.
        dashboard_url: Where people look.
        external_url: Where the source is.
    """

    version: str = ""
    agent_api_version: str = ""
    deployment_id: str = ""
    dashboard_url: str = ""
    external_url: str = ""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """How to reach an agent (workspacesdk AgentConnectionInfo).

    Attributes:
        derp_map: As the server says it: embedded relays not rewritten.
        derp_force_websockets: Never try ``Upgrade: DERP``.
        disable_direct_connections: Use relays only.
        hostname_suffix: Of workspaces in DNS; ``coder`` for most.
    """

    derp_map: DERPMap
    derp_force_websockets: bool = False
    disable_direct_connections: bool = False
    hostname_suffix: str = ""


@dataclass(frozen=True, slots=True)
class UserInfo:
    """A user (codersdk/users.go User)."""

    id: UUID
    username: str


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An agent (codersdk/workspaceagents.go WorkspaceAgent).

    Attributes:
        id: Who it is at the coordinator.
        name: Unique in its workspace.
        status: ``connecting``, ``connected``, ``disconnected``, ``timeout``.
        lifecycle_state: ``created``, ``starting``, ``ready``, …
        parent_id: Of a sub-agent.
        operating_system: Go's name, like ``linux``.
        architecture: Go's name, like ``amd64``.
        directory: Where sessions begin.
    """

    id: UUID
    name: str = ""
    status: str = ""
    lifecycle_state: str = ""
    parent_id: UUID | None = None
    operating_system: str = ""
    architecture: str = ""
    directory: str = ""


@dataclass(frozen=True, slots=True)
class WorkspaceInfo:
    """A workspace and the agents of its latest build.

    Attributes:
        id: Who it is.
        name: Unique among its owner's.
        owner_name: User name.
        status: Of the latest build: ``running``, ``stopped``, …
        transition: What that build was for: ``start``, ``stop``, ``delete``.
        agents: In the order of the server.
    """

    id: UUID
    name: str
    owner_name: str
    status: str
    transition: str
    agents: tuple[AgentInfo, ...]


def decode_model(text: bytes, kind: type[ModelT]) -> ModelT:
    """Read one of the classes above that is flat.

    Raises:
        RemoteProtocolError: Not JSON, or a field of the wrong type.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise RemoteProtocolError(f"the server's answer is not right: {exc}") from exc


class _ConnectionInfoJson(msgspec.Struct):
    derp_map: msgspec.Raw
    derp_force_websockets: bool = False
    disable_direct_connections: bool = False
    hostname_suffix: str = ""


def decode_connection_info(text: bytes) -> ConnectionInfo:
    """Read the answer of ``…/connection``.

    Raises:
        RemoteProtocolError: Not JSON, a field of the wrong type, or a DERP map
            that cannot be read.
    """
    raw = decode_model(text, _ConnectionInfoJson)
    try:
        derp_map = decode_derp_map(bytes(raw.derp_map))
    except DERPMapError as exc:
        raise RemoteProtocolError(f"the server's answer is not right: {exc}") from exc
    return ConnectionInfo(
        derp_map=derp_map,
        derp_force_websockets=raw.derp_force_websockets,
        disable_direct_connections=raw.disable_direct_connections,
        hostname_suffix=raw.hostname_suffix,
    )


class _ResourceJson(msgspec.Struct):
    # Go's nil slice is null.
    agents: tuple[AgentInfo, ...] | None = None


class _BuildJson(msgspec.Struct):
    status: str = ""
    transition: str = ""
    resources: tuple[_ResourceJson, ...] | None = None


class _WorkspaceJson(msgspec.Struct):
    id: UUID
    name: str = ""
    owner_name: str = ""
    latest_build: _BuildJson = msgspec.field(default_factory=_BuildJson)


def decode_workspace(text: bytes) -> WorkspaceInfo:
    """Read the answer of ``…/workspace/{name}``.

    Raises:
        RemoteProtocolError: Not JSON, or a field of the wrong type.
    """
    raw = decode_model(text, _WorkspaceJson)
    build = raw.latest_build
    return WorkspaceInfo(
        id=raw.id,
        name=raw.name,
        owner_name=raw.owner_name,
        status=build.status,
        transition=build.transition,
        agents=tuple(
            agent
            for resource in build.resources or ()
            for agent in resource.agents or ()
        ),
    )


class _ValidationJson(msgspec.Struct):
    field: str = ""
    detail: str = ""


class _ErrorJson(msgspec.Struct):
    message: str = ""
    detail: str = ""
    validations: tuple[_ValidationJson, ...] | None = None


def decode_api_error(status: int, content_type: str, body: bytes) -> ApiError:
    """What a refusal says (codersdk/client.go ReadBodyAsError).

    Never fails: whatever stands between us and the server may have answered.

    Args:
        status: HTTP status.
        content_type: Of the body; empty if there is none.
        body: Its beginning, at least.
    """
    if content_type.partition(";")[0].strip().lower() == "application/json":
        try:
            raw = decode_model(body, _ErrorJson)
        except RemoteProtocolError:
            pass
        else:
            wrong = tuple((v.field, v.detail) for v in raw.validations or ())
            return ApiError(status, raw.message, raw.detail, wrong)
    quoted = body[:_MAX_QUOTED_LEN].decode("utf-8", "replace").strip()
    return ApiError(
        status, f"unexpected non-JSON response ({content_type or 'nothing'})", quoted
    )
