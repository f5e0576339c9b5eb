"""The rooms behind the API, for tests of its endpoints and services.

The store is the real one, without threads; the DERP map is a small one; and
the coordinator is a stand-in that notes what it is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import UUID

import msgspec
import trio
from google.protobuf.message import Message

from relay.api.context import ApiContext, ApiRequest
from relay.api.identity import OwnerAuthorizer, StoreAuthenticator
from relay.api.router import Router
from relay.derpmaps.feed import DerpMapFeed
from relay.front.application import Takeover
from relay.pages.page import Request, Response
from relay.serve_settings import ServeSettings
from relay.store.model import AgentIdentity, User, Workspace
from relay.store.sql_store import SqlStore, open_store
from tailnet.control.server import Handler, ServerCall
from tailnet.coordinator.resume import ResumeTokens
from tailnet.coordinator.serve import CoordinatorService
from tailnet.derp.derpmap import DERPMap, DERPNode, DERPRegion
from tailnet.errors import RpcError
from tailnet.keys import NodePublic
from tests.relay.store.stores import empty_database

MessageT = TypeVar("MessageT", bound=Message)

VERSION = "v0.0.0-tailnet+test"
DEPLOYMENT = UUID("11111111-2222-3333-4444-555555555555")
ACCESS_URL = "https://tailnet.example"


def derp_map(region_name: str = "Embedded") -> DERPMap:
    """A map with one region, 999."""
    node = DERPNode(name="999a", region_id=999, host_name="tailnet.example")
    region = DERPRegion(
        region_id=999, region_code="coder", region_name=region_name, nodes=(node,)
    )
    return DERPMap(regions={999: region})


class Feed(DerpMapFeed):
    """A feed whose next map the test publishes."""

    def __init__(self) -> None:
        super().__init__(derp_map(), None, lambda custom: custom or derp_map())

    def publish(self, new: DERPMap) -> None:
        """As :meth:`run` would, with a map that differs."""
        self._current = new
        self._encoded.clear()
        self._changed.set()
        self._changed = trio.Event()


@dataclass
class FakeCoordinator:
    """Notes what it is asked; knows the keys it is told to know."""

    known: set[NodePublic] = field(default_factory=set)
    removed: list[tuple[UUID, str]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    state: Any = None
    agents: set[UUID] = field(default_factory=set)
    closed: bool = False

    async def coordinate(self, call: ServerCall, **peer: Any) -> None:
        self.calls.append(peer)
        await call.send(b"coordinated")

    def remove_peer(self, peer_id: UUID, reason: str) -> None:
        self.removed.append((peer_id, reason))

    def knows_node_key(self, key: NodePublic) -> bool:
        return key in self.known

    def snapshot(self) -> Any:
        return self.state

    def peer_ids(self, kind: str) -> set[UUID]:
        assert kind == "agent"
        return self.agents

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Rig:
    """A context, what is behind it, and somebody to own things.

    Attributes:
        context: Of the endpoints.
        store: Behind it.
        feed: Of DERP maps.
        coordinator: The stand-in.
        alice: A user with a workspace; ``bob`` is another, ``root`` an admin.
        token: Alice's API key.
        workspace: Alice's, ``dev``.
        agent: Of it, ``main``, with its ``agent_token``.
    """

    context: ApiContext
    store: SqlStore
    feed: Feed
    coordinator: FakeCoordinator
    alice: User
    bob: User
    root: User
    token: str
    bob_token: str
    root_token: str
    workspace: Workspace
    agent: AgentIdentity
    agent_token: UUID

    def request(
        self,
        path: str = "/",
        *,
        params: dict[str, str] | None = None,
        user: User | None = None,
        agent: AgentIdentity | None = None,
        body: bytes = b"",
        query: str = "",
        method: str = "GET",
    ) -> ApiRequest:
        """A request past the router, by Alice unless another is named."""
        return ApiRequest(
            Request(method, path, path, query=query, body=body),
            params or {},
            self.context,
            user or self.alice,
            agent,
        )


@asynccontextmanager
async def open_rig(tmp_path: Path, **settings: Any) -> AsyncIterator[Rig]:
    """A rig with a store of its own."""
    (tmp_path / "tailnet.db").write_bytes(empty_database())
    async with open_store(tmp_path / "tailnet.db", threads=False) as store:
        alice = await store.create_user("alice")
        bob = await store.create_user("bob")
        root = await store.create_user("root", is_admin=True)
        keys = [await store.create_api_key(user.id) for user in (alice, bob, root)]
        workspace = await store.create_workspace(alice.id, "dev")
        new = await store.create_agent(workspace.id, "main", directory="/home/alice")
        feed, coordinator = Feed(), FakeCoordinator()
        context = ApiContext(
            settings=ServeSettings(data_dir=tmp_path, **settings),
            store=store,
            authenticator=StoreAuthenticator(store),
            authorizer=OwnerAuthorizer(store),
            coordinator=cast("CoordinatorService", coordinator),
            derp_maps=feed,
            resume_tokens=ResumeTokens(lambda: 1.8e9, [("kid", bytes(range(64)))]),
            deployment_id=DEPLOYMENT,
            access_url=ACCESS_URL,
            version=VERSION,
        )
        context.revisions.note(await store.revision())
        identity = await store.agent_identity(new.agent.id)
        assert identity is not None
        yield Rig(
            context, store, feed, coordinator, alice, bob, root,
            keys[0].token, keys[1].token, keys[2].token,
            workspace, identity, new.token,
        )  # fmt: skip


class FakeCall:
    """A call as its handler sees it: messages given, answers noted."""

    def __init__(self, method: str, *messages: bytes) -> None:
        self.method = method
        self.messages = list(messages)
        self.sent: list[bytes] = []

    async def receive(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self.messages.pop(0) if self.messages else None

    async def send(self, message: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)

    def reply(self, message: bytes) -> None:
        self.sent.append(message)


async def run_call(handler: Handler, call: FakeCall) -> None:
    """Let a handler serve a call until it is done with it."""
    await handler(cast("ServerCall", call))


async def ask(
    handler: Handler, request: Message | bytes, answer: type[MessageT]
) -> MessageT:
    """Make a unary call.

    Raises:
        RpcError: That is the answer.
    """
    data = request if isinstance(request, bytes) else request.SerializeToString()
    call = FakeCall("/test/Method", data)
    await run_call(handler, call)
    assert len(call.sent) == 1
    return answer.FromString(call.sent[0])


async def refusal(handler: Handler, request: Message | bytes) -> RpcError:
    """Make a unary call that is answered with an error."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    call = FakeCall("/test/Method", data)
    try:
        await run_call(handler, call)
    except RpcError as exc:
        assert not call.sent
        return exc
    raise AssertionError(f"answered with {call.sent!r}")


async def answer_of(
    handler: Callable[[ApiRequest], Awaitable[Response | Takeover]],
    request: ApiRequest,
) -> Response:
    """What an endpoint answers; an ApiError is an answer too."""
    from relay.api.context import ApiError

    try:
        answer = await handler(request)
    except ApiError as exc:
        answer = exc.answer
    assert isinstance(answer, Response)
    return answer


def body_of(answer: Response) -> Any:
    """The JSON of an answer."""
    assert dict(answer.headers)["Content-Type"] == "application/json; charset=utf-8"
    assert answer.body.endswith(b"\n")
    return msgspec.json.decode(answer.body)


async def fetch(
    router: Router,
    method: str,
    target: str,
    *,
    token: str = "",
    body: bytes = b"",
) -> Response:
    """Ask the router, as a client does."""
    path, _, query = target.partition("?")
    headers = ((b"coder-session-token", token.encode()),) if token else ()
    answer = await router.answer(
        Request(method, target, path, query=query, headers=headers, body=body)
    )
    assert isinstance(answer, Response)
    return answer


NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
LATER = timedelta(seconds=1)
