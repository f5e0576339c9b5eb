"""The output of an agent's scripts, for whoever waits for the agent to start.

``GET /workspaceagents/{agent}/logs``: coder ``coderd/workspaceagents.go``,
workspaceAgentLogs. ``coder ssh`` follows them while an agent is starting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog
import trio

from relay.api.answers import Validation, error_answer, json_answer
from relay.api.context import ApiRequest
from relay.api.messages import MessageSocket, accept_messages
from relay.api.router import Route
from relay.front.application import Takeover
from relay.front.tls import TlsError
from relay.pages.page import Response
from relay.store.report_model import StoredLogLine
from tailnet.errors import StoreUnavailableError

__all__ = ("LOG_ROUTES", "MAX_LINES", "POLL_INTERVAL")

log = structlog.get_logger("relay.api")

# Seconds between two looks at the store.
POLL_INTERVAL: Final = 1.0

# Looks between two Pings, whose Pongs have as long to come.
LOOKS_PER_PING: Final = 15

# Lines that are read at one time.
MAX_LINES: Final = 1000

# Bytes of output in a message. The reader takes 4 MiB.
MAX_BATCH_LEN: Final = 256 << 10

_BAD_AFTER: Final = error_answer(
    400,
    "Query parameters have invalid values.",
    validations=(
        Validation("after", "Query param 'after' must be a non-negative number."),
    ),
)


async def _agent_logs(request: ApiRequest) -> Response | Takeover:
    """All lines behind number ``after``; with ``follow``, all to come too."""
    identity = await request.agent_param()
    after = request.query("after") or "0"
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        return _BAD_AFTER
    follower = _Follower(request, identity.agent.id, int(after))
    if "follow" not in request.request.query:
        return json_answer(200, await follower.all_lines())
    return accept_messages(request, follower.serve)


class _Follower:
    """Somebody who reads the logs of an agent, and how far they are."""

    def __init__(self, request: ApiRequest, agent_id: Any, after: int) -> None:
        self._store = request.context.store
        self._agent_id = agent_id
        self._seen = after

    async def next_lines(self) -> Sequence[Mapping[str, Any]]:
        """Lines that were not seen yet, numbered from 1, MAX_LINES at most."""
        count, lines = await self._look()
        if count < self._seen:
            self._seen = 0  # the agent started anew, and so did its logs
            count, lines = await self._look()
        new = [
            _line_json(number, entry)
            for number, entry in enumerate(lines, self._seen + 1)
        ]
        self._seen += len(new)
        return new

    async def _look(self) -> tuple[int, Sequence[StoredLogLine]]:
        return await self._store.agent_logs(
            self._agent_id, after=self._seen, limit=MAX_LINES
        )

    async def all_lines(self) -> Sequence[Mapping[str, Any]]:
        """All that were not seen yet."""
        lines: list[Mapping[str, Any]] = []
        while new := await self.next_lines():
            lines += new
        return lines

    async def serve(self, messages: MessageSocket) -> None:
        """Send lines until the client leaves."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, messages, nursery.cancel_scope)
            try:
                while await messages.receive() is not None:
                    pass
            except (OSError, TlsError):
                pass  # the client is gone
            nursery.cancel_scope.cancel()

    async def _send(self, messages: MessageSocket, scope: trio.CancelScope) -> None:
        looks, pongs = 0, -1
        try:
            while True:
                while lines := await self.next_lines():
                    for batch in _batches(lines):
                        await messages.send(msgspec.json.encode(batch).decode())
                if looks % LOOKS_PER_PING == 0:
                    if messages.pongs == pongs:
                        break  # the client is gone without a word
                    pongs = messages.pongs
                    await messages.ping()
                looks += 1
                await trio.sleep(POLL_INTERVAL)
        except StoreUnavailableError as exc:
            log.error("the store does not answer", reason=str(exc))
        except OSError:
            pass  # the client is gone
        scope.cancel()


def _batches(
    lines: Sequence[Mapping[str, Any]],
) -> Sequence[Sequence[Mapping[str, Any]]]:
    batches: list[list[Mapping[str, Any]]] = []
    size = MAX_BATCH_LEN
    for line in lines:
        if size >= MAX_BATCH_LEN:
            batches.append([])
            size = 0
        batches[-1].append(line)
        size += len(line["output"])
    return batches


def _line_json(number: int, entry: StoredLogLine) -> Mapping[str, Any]:
    return {
        "id": number,
        "created_at": entry.line.created_at,
        "output": entry.line.output,
        "level": entry.line.level.value,
        "source_id": str(entry.source_id),
    }


LOG_ROUTES: Final = (Route("GET", "/api/v2/workspaceagents/{agent}/logs", _agent_logs),)
