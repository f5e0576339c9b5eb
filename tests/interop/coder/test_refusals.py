"""What a client is told that asks for what it may not have, word for word.

Coder's own dRPC client asks, and each case runs against Coder's own code too:
the texts are its texts.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.interop.coder.peers import run_rpc
from tests.interop.coder.servers import Json, Server, ServerKind, open_server
from tests.interop.programs import free_port

COORDINATE = "/api/v2/workspaceagents/{agent}/coordinate"
TAILNET = "/api/v2/tailnet"
RPC = "/api/v2/workspaceagents/me/rpc"


@dataclass(slots=True)
class Asking:
    """A server, and steps taken at it."""

    server: Server
    folder: Path

    async def ask(
        self, path: str, *flags: str, token: str | None = None, steps: list[Json]
    ) -> list[Json]:
        return await run_rpc(
            self.server,
            self.folder,
            *("--path", path, "--agent", self.server.agent.id),
            *("--token", token or self.server.owner.token),
            *flags,
            steps=steps,
        )

    async def refused(self, path: str, *flags: str, token: str | None = None) -> Json:
        """What it answers to a dial that it does not accept."""
        (line,) = await self.ask(path, *flags, token=token, steps=[])
        assert line["event"] == "refused", line
        return line

    async def error(
        self, path: str, request: Json, token: str | None = None
    ) -> list[str]:
        """What a Coordinate stream says before it ends, for one request."""
        lines = await self.ask(
            path,
            token=token,
            steps=[
                {"op": "coordinate", **request},
                {"op": "wait", "event": "coordinate_end"},
            ],
        )
        assert lines[-1]["event"] == "coordinate_end", lines
        assert lines[-1]["eof"]
        return [
            line["message"]["error"] for line in lines if line["event"] == "coordinate"
        ]


@contextlib.asynccontextmanager
async def open_asking(kind: ServerKind, folder: Path) -> AsyncIterator[Asking]:
    with trio.fail_after(60):
        async with open_server(
            kind, folder / "server", host="127.0.0.1", port=free_port(), agents=2
        ) as server:
            yield Asking(server, folder / "rpc")


async def test_versions(kind: ServerKind, tmp_path: Path) -> None:
    behind = f"server is at version {kind.version}, behind requested"
    async with open_asking(kind, tmp_path) as asking:
        for version, detail in {
            "none": "version 1.0 is no longer supported",
            "1.0": "version 1.0 is no longer supported",
            "2.99": f"{behind} minor version 2.99",
            "3.0": f"{behind} major version 3.0",
            "two": "invalid version string: two",
            "2": "invalid version string: 2",
            "2.x": "invalid minor version: 2.x",
            "x.2": "invalid major version: x.2",
        }.items():
            answer = await asking.refused(COORDINATE, "--version", version)
            assert answer["status"] == 400
            assert answer["type"].startswith("application/json")
            assert answer["body"] == {
                "message": "Unknown or unsupported API version",
                "validations": [{"field": "version", "detail": detail}],
            }


async def test_who_may_dial(kind: ServerKind, tmp_path: Path) -> None:
    async with open_asking(kind, tmp_path) as asking:
        stranger = asking.server.stranger.token
        unknown = await asking.refused(COORDINATE, token="no-such-token")
        assert unknown["status"] == 401
        assert unknown["body"]["message"]
        other = await asking.refused(COORDINATE, token=stranger)
        assert other["status"] == 404
        assert other["body"] == {
            "message": (
                "Agent doesn't exist with that id, or you do not have access to it."
            )
        }
        user_as_agent = await asking.refused(RPC)
        assert user_as_agent["status"] == 401
        agent_as_user = await asking.refused(TAILNET, token=asking.server.agent.token)
        assert agent_as_user["status"] == 401
        foreign = await asking.refused(COORDINATE, "--origin", "http://evil.example")
        assert foreign["status"] == 403
        assert 'request Origin "evil.example" is not authorized' in foreign["body"]


async def test_resume_tokens(kind: ServerKind, tmp_path: Path) -> None:
    async with open_asking(kind, tmp_path) as asking:
        answer = await asking.refused(COORDINATE, "--resume-token", "nonsense")
        assert answer["status"] == 401
        assert answer["body"]["message"] == "Invalid resume token"
        assert answer["body"]["validations"] == [
            {"field": "resume_token", "detail": "Invalid resume token"}
        ]
        lines = await asking.ask(COORDINATE, steps=[{"op": "resume_token"}])
        token = lines[-1]
        assert token["refresh_in_seconds"] == pytest.approx(43200, abs=5)
        assert token["expires_in_seconds"] == pytest.approx(86400, abs=5)
        lines = await asking.ask(
            COORDINATE,
            *("--resume-token", token["token"]),
            steps=[{"op": "resume_token"}],
        )
        assert [line["event"] for line in lines] == ["connected", "resume_token"]


async def test_tunnels(kind: ServerKind, tmp_path: Path) -> None:
    async with open_asking(kind, tmp_path) as asking:
        mine, other = asking.server.agents
        stranger = asking.server.stranger.token
        assert await asking.error(COORDINATE, {"add_tunnel": other.id}) == [
            f"authorization: invalid agent id, expected {mine.id}, got {other.id}"
        ]
        fifteen = {"add_tunnel": "hex:" + bytes(range(15)).hex()}
        for path in (COORDINATE, TAILNET):
            assert await asking.error(path, fifteen) == [
                "authorization: parse add tunnel id: invalid UUID (got 15 bytes)"
            ]
        to_mine = {"add_tunnel": mine.id}
        assert await asking.error(TAILNET, to_mine, stranger) == [
            "authorization: workspace agent not found or you do not have permission"
        ]
        assert await asking.error(RPC, {"add_tunnel": other.id}, mine.token) == [
            "authorization: agents cannot open tunnels"
        ]
        # Nothing is wrong with this one, and it ends as it asks to.
        fine = {"add_tunnel": mine.id, "disconnect": True}
        assert await asking.error(COORDINATE, fine) == []


async def test_nodes_and_handshakes(kind: ServerKind, tmp_path: Path) -> None:
    async with open_asking(kind, tmp_path) as asking:
        agent = asking.server.agent
        ready = {"ready_for_handshake": [agent.id]}
        assert await asking.error(COORDINATE, ready) == [
            "authorization: clients may not send ready_for_handshake"
        ]

        def with_address(address: str) -> Json:
            return {"request": {"update_self": {"node": {"addresses": [address]}}}}

        for address, text in {
            "fd7a:115c:a1e0::/64": "invalid address bits, expected 128, got 64",
            "nonsense": ("parse node address: netip.ParsePrefix(\"nonsense\"): no '/'"),
        }.items():
            for path, token in ((COORDINATE, None), (RPC, agent.token)):
                assert await asking.error(path, with_address(address), token) == [
                    f"authorization: {text}"
                ]
        not_its_own = with_address("fd7a:115c:a1e0::1/128")
        assert await asking.error(RPC, not_its_own, agent.token) == [
            "authorization: invalid node address, got fd7a:115c:a1e0::1"
        ]


async def test_handshake_with_a_peer_without_tunnel_is_not_fatal(
    kind: ServerKind, tmp_path: Path
) -> None:
    async with open_asking(kind, tmp_path) as asking:
        mine, other = asking.server.agents
        lines = await asking.ask(
            RPC,
            token=mine.token,
            steps=[
                {"op": "coordinate", "ready_for_handshake": [other.id]},
                {"op": "wait", "event": "coordinate"},
                {"op": "coordinate", "ready_for_handshake": [other.id]},
                {"op": "wait", "event": "coordinate", "count": 2},
            ],
        )
        texts = [
            line["message"]["error"] for line in lines if line["event"] == "coordinate"
        ]
        text = f'ready for handshake error: you do not share a tunnel with "{other.id}"'
        # The second answer shows that the first error was not fatal.
        assert texts == [text, text]


async def test_unknown_call(kind: ServerKind, tmp_path: Path) -> None:
    """The connection lives on, and the caller can tell that it is not there."""
    method = "/coder.tailnet.v2.Tailnet/NoSuch"
    async with open_asking(kind, tmp_path) as asking:
        lines = await asking.ask(
            TAILNET,
            steps=[{"op": "unary", "method": method}, {"op": "telemetry", "events": 2}],
        )
        _, reply, telemetry = lines
        unimplemented = reply["code"] == 12
        assert unimplemented or reply["error"] == (
            f'protocol error: unknown rpc: "{method}"'
        )
        assert telemetry == {"event": "telemetry", "t_ms": telemetry["t_ms"]}
