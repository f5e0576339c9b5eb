from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing

from relay.api.peer import ApiPeer
from relay.api.tailnet_service import (
    MAX_TELEMETRY_LEN,
    TAILNET_SERVICE,
    tailnet_handlers,
)
from relay.store.model import User
from tailnet.control.proto import tailnet_pb2 as pb
from tailnet.control.server import Handler, ServerCall
from tailnet.coordinator.auth import ClientAuth
from tailnet.derp.derpmap import DERPMap
from tailnet.errors import StoreUnavailableError
from tests.relay.api.rig import (
    FakeCall,
    Rig,
    ask,
    derp_map,
    open_rig,
    refusal,
    run_call,
)

PEER = UUID("01234567-89ab-cdef-0123-456789abcdef")


def handlers(rig: Rig, user: User | None = None) -> Mapping[str, Handler]:
    """Those of one of Alice's clients, or of whom is named, by short name."""
    peer = ApiPeer(
        PEER, "client", "client", ClientAuth(rig.agent.agent.id), user or rig.alice
    )
    return {
        name.removeprefix(TAILNET_SERVICE): handler
        for name, handler in tailnet_handlers(rig.context, peer).items()
    }


def agent_handlers(rig: Rig) -> Mapping[str, Handler]:
    peer = ApiPeer(PEER, "agent", "agent", ClientAuth(PEER))
    return {
        name.removeprefix(TAILNET_SERVICE): handler
        for name, handler in tailnet_handlers(rig.context, peer).items()
    }


async def test_every_method_of_the_service_has_a_handler(tmp_path: Path) -> None:
    service = pb.DESCRIPTOR.services_by_name["Tailnet"]
    assert f"/{service.full_name}/" == TAILNET_SERVICE
    async with open_rig(tmp_path) as rig:
        names = {method.name for method in service.methods}
        assert set(handlers(rig)) == set(agent_handlers(rig)) == names


async def test_coordinate_is_the_coordinators(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        call = FakeCall("Coordinate")
        await run_call(handlers(rig)["Coordinate"], call)
        assert call.sent == [b"coordinated"]
        (peer,) = rig.coordinator.calls
        assert (peer["peer_id"], peer["name"], peer["kind"]) == (
            PEER,
            "client",
            "client",
        )


# -- DERP maps ---------------------------------------------------------------


def names_of(call: FakeCall) -> list[str]:
    maps = [pb.DERPMap.FromString(data) for data in call.sent]
    assert all(m.HasField("home_params") for m in maps)  # or a Go peer ends
    return [m.regions[999].region_name for m in maps]


async def test_derp_maps_now_and_on_change(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        calls = [FakeCall("StreamDERPMaps", b"") for _ in range(2)]
        for call in calls:
            nursery.start_soon(run_call, handlers(rig)["StreamDERPMaps"], call)
        await trio.testing.wait_all_tasks_blocked()
        assert [names_of(call) for call in calls] == [["Embedded"]] * 2

        rig.feed.publish(derp_map("Second"))
        await trio.testing.wait_all_tasks_blocked()
        assert names_of(calls[0]) == ["Embedded", "Second"]
        assert trio.current_time() == 0.0  # nobody polls
        # Encoded once for all.
        assert calls[0].sent[1] is calls[1].sent[1]

        # One that is the same for clients is none.
        rig.feed.publish(derp_map("Second"))
        await trio.testing.wait_all_tasks_blocked()
        assert names_of(calls[0]) == ["Embedded", "Second"]
        rig.feed.publish(DERPMap(regions={}))
        await trio.testing.wait_all_tasks_blocked()
        last = pb.DERPMap.FromString(calls[0].sent[-1])
        assert not last.regions
        assert last.HasField("home_params")
        nursery.cancel_scope.cancel()


async def test_a_slow_client_skips_maps(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    class SlowCall(FakeCall):
        async def send(self, message: bytes) -> None:
            await super().send(message)
            await trio.sleep(10)

    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        call = SlowCall("StreamDERPMaps", b"")
        nursery.start_soon(run_call, handlers(rig)["StreamDERPMaps"], call)
        await trio.sleep(1)
        for name in ("one", "two", "three"):
            rig.feed.publish(derp_map(name))
        await trio.sleep(60)
        assert names_of(call) == ["Embedded", "three"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", ["StreamDERPMaps", "WorkspaceUpdates"])
async def test_streams_without_a_request(tmp_path: Path, method: str) -> None:
    async with open_rig(tmp_path) as rig:
        with pytest.raises(Exception, match="EOF"):
            await run_call(handlers(rig)[method], FakeCall(method))
        error = await refusal(handlers(rig)[method], b"\x0a\xff")
        assert "cannot parse" in error.text


# -- telemetry and resume tokens ---------------------------------------------


async def test_telemetry_is_taken(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        handler = handlers(rig)["PostTelemetry"]
        request = pb.TelemetryRequest(events=[pb.TelemetryEvent(application="ssh")])
        await ask(handler, request, pb.TelemetryResponse)
        error = await refusal(handler, bytes(MAX_TELEMETRY_LEN + 1))
        assert "the limit is 1048576" in error.text


async def test_resume_token(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        answer = await ask(
            handlers(rig)["RefreshResumeToken"], b"", pb.RefreshResumeTokenResponse
        )
        assert rig.context.resume_tokens.verify(answer.token, rig.alice.id) == PEER
        assert answer.refresh_in.seconds == 12 * 3600
        assert answer.expires_at.seconds == 1_800_000_000 + 24 * 3600


@pytest.mark.parametrize("method", ["RefreshResumeToken", "WorkspaceUpdates"])
async def test_what_agents_do_not_get(tmp_path: Path, method: str) -> None:
    """A resume token would let a client be the agent; workspaces are not its."""
    async with open_rig(tmp_path) as rig:
        error = await refusal(agent_handlers(rig)[method], b"")
        assert error.code == 12


# -- workspace updates -------------------------------------------------------


class Updates:
    """What a client has been told, applied in the order of Go's client."""

    def __init__(self, call: FakeCall) -> None:
        self._call = call
        self.seen = 0
        self.workspaces: dict[UUID, str] = {}
        self.agents: dict[UUID, tuple[str, UUID]] = {}

    def apply(self) -> None:
        """Take the messages that have come since the last time."""
        for data in self._call.sent[self.seen :]:
            self.seen += 1
            update = pb.WorkspaceUpdate.FromString(data)
            for workspace in update.upserted_workspaces:
                assert workspace.status == pb.Workspace.RUNNING
                self.workspaces[UUID(bytes=workspace.id)] = workspace.name
            for agent in update.deleted_agents:
                del self.agents[UUID(bytes=agent.id)]
            for workspace in update.deleted_workspaces:
                del self.workspaces[UUID(bytes=workspace.id)]
            for agent in update.upserted_agents:
                home = UUID(bytes=agent.workspace_id)
                assert home in self.workspaces
                self.agents[UUID(bytes=agent.id)] = (agent.name, home)
            assert {home for _, home in self.agents.values()} <= set(self.workspaces)


async def test_workspace_updates(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:

        async def settle() -> None:
            rig.context.revisions.note(await rig.store.revision())
            await trio.testing.wait_all_tasks_blocked()
            told.apply()

        request = pb.WorkspaceUpdatesRequest(workspace_owner_id=rig.alice.id.bytes)
        call = FakeCall("WorkspaceUpdates", request.SerializeToString())
        told = Updates(call)
        nursery.start_soon(run_call, handlers(rig)["WorkspaceUpdates"], call)
        await settle()
        # The whole at once ...
        main = rig.agent.agent
        assert told.seen == 1
        assert told.workspaces == {rig.workspace.id: "dev"}
        assert told.agents == {main.id: ("main", rig.workspace.id)}
        # ... and then differences.
        second = await rig.store.create_agent(rig.workspace.id, "second")
        other = await rig.store.create_workspace(rig.alice.id, "other")
        await settle()
        assert told.seen == 2
        assert set(told.workspaces) == {rig.workspace.id, other.id}
        assert set(told.agents) == {main.id, second.agent.id}
        # What others do is not told.
        await rig.store.create_workspace(rig.bob.id, "bobs")
        await settle()
        assert told.seen == 2
        await rig.store.delete_agent(second.agent.id)
        await rig.store.delete_workspace(other.id)
        await settle()
        assert set(told.agents) == {main.id}
        assert set(told.workspaces) == {rig.workspace.id}
        await rig.store.delete_workspace(rig.workspace.id)
        await settle()
        assert told.agents == {}
        assert told.workspaces == {}
        nursery.cancel_scope.cancel()


async def test_an_owner_without_workspaces_gets_an_empty_snapshot(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        request = pb.WorkspaceUpdatesRequest(workspace_owner_id=rig.bob.id.bytes)
        call = FakeCall("WorkspaceUpdates", request.SerializeToString())
        nursery.start_soon(run_call, handlers(rig, rig.bob)["WorkspaceUpdates"], call)
        await trio.testing.wait_all_tasks_blocked()
        assert call.sent == [b""]
        nursery.cancel_scope.cancel()


async def test_workspaces_of_others(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        for owner in (rig.bob.id, uuid4()):
            error = await refusal(
                handlers(rig)["WorkspaceUpdates"],
                pb.WorkspaceUpdatesRequest(workspace_owner_id=owner.bytes),
            )
            assert "do not have permission" in error.text


async def test_admins_may_watch_anybody(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_rig(tmp_path) as rig, trio.open_nursery() as nursery:
        request = pb.WorkspaceUpdatesRequest(workspace_owner_id=rig.alice.id.bytes)
        call = FakeCall("WorkspaceUpdates", request.SerializeToString())
        nursery.start_soon(run_call, handlers(rig, rig.root)["WorkspaceUpdates"], call)
        await trio.testing.wait_all_tasks_blocked()
        told = Updates(call)
        told.apply()
        assert set(told.workspaces) == {rig.workspace.id}
        nursery.cancel_scope.cancel()


async def test_bad_owner(tmp_path: Path) -> None:
    async with open_rig(tmp_path) as rig:
        error = await refusal(
            handlers(rig)["WorkspaceUpdates"],
            pb.WorkspaceUpdatesRequest(workspace_owner_id=b"short"),
        )
        assert error.text == "parse workspace owner ID: invalid UUID (got 5 bytes)"


async def test_coordinate_while_the_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a tunnel may be opened is asked there."""

    async def away(call: ServerCall, **peer: object) -> None:
        await trio.lowlevel.checkpoint()
        raise StoreUnavailableError("the database is locked")

    async with open_rig(tmp_path) as rig:
        monkeypatch.setattr(rig.coordinator, "coordinate", away)
        error = await refusal(handlers(rig)["Coordinate"], b"")
        assert error.text == "database not reachable"
