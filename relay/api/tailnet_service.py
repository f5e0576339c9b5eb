"""The Tailnet service: what every peer of a tailnet calls, on one connection.

Clients have all of it. Agents have no use for resume tokens, as their id is
their own, and must not see workspaces: those two methods are Unimplemented for
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar
from uuid import UUID

import structlog
from google.protobuf.message import Message

from relay.api.agent_checks import check_uuid
from relay.api.context import ApiContext
from relay.api.peer import ApiPeer
from relay.api.unary import decode_request, refuse, store_refusal, unary
from relay.store.model import WorkspaceAgents
from tailnet.control.convert import derp_map_to_proto
from tailnet.control.proto import tailnet_pb2 as pb
from tailnet.control.server import Handler, ServerCall
from tailnet.coordinator.updates import (
    AgentState,
    WorkspaceState,
    WorkspaceUpdates,
)
from tailnet.derp.derpmap import DERPMap
from tailnet.errors import RpcError, StoreError

__all__ = ("TAILNET_SERVICE", "proto_derp_map", "tailnet_handlers")

log = structlog.get_logger("relay.api")

_Request = TypeVar("_Request", bound=Message)

TAILNET_SERVICE: Final = "/coder.tailnet.v2.Tailnet/"

# Bytes. Events come one or few at a time; each may carry a DERP map.
MAX_TELEMETRY_LEN: Final = 1 << 20

# Ours, after the text for a denied tunnel.
WATCH_DENIED: Final = "workspace owner not found or you do not have permission"


def proto_derp_map(derp_map: DERPMap) -> bytes:
    """The bytes of a map on the wire, for :meth:`DerpMapFeed.encoded`."""
    return derp_map_to_proto(derp_map).SerializeToString()


def tailnet_handlers(context: ApiContext, peer: ApiPeer) -> Mapping[str, Handler]:
    """A handler for every method of the service, by its full name.

    Args:
        context: The rooms behind the API.
        peer: Who calls.
    """
    service = _TailnetService(context, peer)
    is_agent = peer.user is None
    by_name: dict[str, Handler] = {
        "Coordinate": service.coordinate,
        "StreamDERPMaps": service.stream_derp_maps,
        "PostTelemetry": unary(
            pb.TelemetryRequest, service.post_telemetry, max_len=MAX_TELEMETRY_LEN
        ),
        "RefreshResumeToken": refuse
        if is_agent
        else unary(pb.RefreshResumeTokenRequest, service.refresh_resume_token),
        "WorkspaceUpdates": refuse if is_agent else service.workspace_updates,
    }
    return {TAILNET_SERVICE + name: handler for name, handler in by_name.items()}


class _TailnetService:
    """The methods, for one peer."""

    __slots__ = ("_context", "_peer")

    def __init__(self, context: ApiContext, peer: ApiPeer) -> None:
        self._context = context
        self._peer = peer

    async def coordinate(self, call: ServerCall) -> None:
        """Tell peers of each other; the coordinator does it."""
        peer = self._peer
        try:
            await self._context.coordinator.coordinate(
                call, peer_id=peer.id, name=peer.name, auth=peer.auth, kind=peer.kind
            )
        except StoreError as exc:  # whether it may open a tunnel
            raise store_refusal(call.method, exc) from exc

    async def stream_derp_maps(self, call: ServerCall) -> None:
        """The map of now, and each one that replaces it."""
        await _receive(call, pb.StreamDERPMapsRequest)
        feed = self._context.derp_maps
        seen = feed.current
        while True:
            # The same bytes for all; Go compares and sends every 5 s instead.
            await call.send(feed.encoded(proto_derp_map))
            seen = await feed.wait_change(seen)

    async def post_telemetry(
        self, request: pb.TelemetryRequest
    ) -> pb.TelemetryResponse:
        """Take what clients say of their connections, for the log."""
        log.debug("telemetry", peer=str(self._peer.id), events=len(request.events))
        return pb.TelemetryResponse()

    async def refresh_resume_token(
        self, request: pb.RefreshResumeTokenRequest
    ) -> pb.RefreshResumeTokenResponse:
        """A token with which a client gets its peer id back."""
        user = self._peer.user
        assert user is not None
        issued = self._context.resume_tokens.issue(self._peer.id, user.id)
        response = pb.RefreshResumeTokenResponse(token=issued.token)
        response.refresh_in.FromTimedelta(issued.refresh_in)
        response.expires_at.FromDatetime(issued.expires_at)
        return response

    async def workspace_updates(self, call: ServerCall) -> None:
        """The workspaces and agents of one owner, and every change of them."""
        request = await _receive(call, pb.WorkspaceUpdatesRequest)
        try:
            owner_id = check_uuid(
                "parse workspace owner ID", request.workspace_owner_id
            )
            await self._stream_updates(call, owner_id)
        except StoreError as exc:
            raise store_refusal(call.method, exc) from exc

    async def _stream_updates(self, call: ServerCall, owner_id: UUID) -> None:
        context, user = self._context, self._peer.user
        assert user is not None
        differ = WorkspaceUpdates()
        while True:
            revision = context.revisions.current
            # Asked again for each message: rights may have changed as well.
            if not await context.authorizer.may_watch(user, owner_id):
                raise RpcError(WATCH_DENIED)
            workspaces = await context.store.workspaces_of(owner_id)
            message = differ.update(map(_workspace_state, workspaces))
            if message is not None:
                await call.send(message.SerializeToString())
            await context.revisions.wait_change(revision)


def _workspace_state(item: WorkspaceAgents) -> WorkspaceState:
    """A workspace as clients know it. It is always running: see rest_json."""
    return WorkspaceState(
        item.workspace.id,
        item.workspace.name,
        agents=tuple(AgentState(agent.id, agent.name) for agent in item.agents),
    )


async def _receive(call: ServerCall, kind: type[_Request]) -> _Request:
    """The request of a call that answers with a stream.

    Raises:
        RpcError: There is none.
    """
    data = await call.receive()
    if data is None:
        raise RpcError("EOF")  # what Go's MsgRecv returns
    return decode_request(kind, data)
