"""Who may use a relay: those whom the coordinator knows.

Twice the same question. The relay in this process asks before it admits a
client (:class:`CoordinatorAdmission`), and relays elsewhere ask over HTTP, as
derper does with ``-verify-client-url`` (tailscale ``tailcfg``,
``DERPAdmitClientRequest`` and ``DERPAdmitClientResponse``)::

    POST /derp/verify   {"NodePublic":"nodekey:<hex>","Source":"<ip>"}
    200                 {"Allow":true}

derper sends no headers of its own, but it takes a user and a password in the
URL. So the token is a bearer token, or the password of any user:
``-verify-client-url=https://derper:TOKEN@tailnet.example/derp/verify``.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Callable
from typing import Final

import structlog
import trio

from relay.api.answers import error_answer, json_answer
from relay.api.context import ApiRequest
from relay.api.router import Auth, Route
from relay.derp.session import Admission, Newcomer
from relay.pages.page import Request, Response
from tailnet.coordinator.serve import CoordinatorService
from tailnet.keys import NodePublic

__all__ = (
    "MAX_BODY_LEN",
    "PATIENCE",
    "VERIFY_ROUTES",
    "CoordinatorAdmission",
    "coordinator_admission",
    "verify",
)

log = structlog.get_logger("relay.api")

# Of headscale's /verify (hscontrol/handlers.go), and more than any derper says.
MAX_BODY_LEN: Final = 4 << 10

# Ours. A node that starts dials its relay before its first update_self has
# gone out, and would be turned away for 5 s (magicsock's redial). So a key
# that is not known gets this long to become so, within the 10 s that a
# handshake may take.
PATIENCE: Final = 4.0
PAUSE: Final = 0.1

# Ours: clients that wait at once. Anybody can make a key up.
MAX_WAITING: Final = 256


class CoordinatorAdmission:
    """Admits node keys that the coordinator knows.

    An :data:`relay.derp.session.Admission`.

    Args:
        knows: Whether a key is of a live peer, or of one lost lately.
        patience: Seconds that a key has to become known.
    """

    def __init__(
        self, knows: Callable[[NodePublic], bool], *, patience: float = PATIENCE
    ) -> None:
        self._knows = knows
        self._patience = patience
        self._waiting = 0

    async def __call__(self, newcomer: Newcomer) -> str | None:
        """Let ``newcomer`` in by returning None, or say why not."""
        if self._knows(newcomer.key):
            await trio.lowlevel.checkpoint()
            return None
        if self._waiting >= MAX_WAITING:
            await trio.lowlevel.checkpoint()
            return f"unknown node key, and {MAX_WAITING} others wait"
        self._waiting += 1
        try:
            deadline = trio.current_time() + self._patience
            while trio.current_time() < deadline:
                await trio.sleep(PAUSE)
                if self._knows(newcomer.key):
                    return None
        finally:
            self._waiting -= 1
        return "the coordinator does not know this node key"


def coordinator_admission(coordinator: CoordinatorService) -> Admission:
    """Who may use the relay of this process: peers of its coordinator."""
    return CoordinatorAdmission(coordinator.knows_node_key)


async def verify(request: ApiRequest) -> Response:
    """``POST /derp/verify``."""
    token = request.context.settings.verify_token
    knows = request.context.coordinator.knows_node_key
    return _answer(request.request, token or "", knows)


VERIFY_ROUTES: Final = (Route("POST", "/derp/verify", verify, Auth.NONE),)


def _answer(
    request: Request, token: str, knows: Callable[[NodePublic], bool]
) -> Response:
    if not token:
        return error_answer(
            404,
            "Verification of DERP clients is off.",
            "Start the server with --verify-token-file.",
        )
    given = _given_token(request).encode("utf-8", "replace")
    if not hmac.compare_digest(given, token.encode()):
        answer = error_answer(401, "The token is missing or wrong.")
        challenge = ("WWW-Authenticate", 'Bearer realm="derp-verify"')
        return Response(answer.status, (*answer.headers, challenge), answer.body)
    if len(request.body) > MAX_BODY_LEN:
        return error_answer(
            413, "Request body too large.", f"The limit is {MAX_BODY_LEN} bytes."
        )
    try:
        key, source = _parse_question(request.body)
    except ValueError as exc:
        return error_answer(400, "Request body must be valid JSON.", str(exc))
    allow = knows(key)
    log.debug("derp client verified", key=key.short, source=source, allow=allow)
    return json_answer(200, {"Allow": allow})


def _given_token(request: Request) -> str:
    scheme, _, value = request.header("authorization").strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(value, validate=True).decode("latin-1")
        except (binascii.Error, ValueError):
            return ""
        return pair.partition(":")[2]
    return ""


def _parse_question(body: bytes) -> tuple[NodePublic, str]:
    """Take a question apart. Go's decoder does not mind the case of names.

    Raises:
        ValueError: It is none.
    """
    try:
        question = json.loads(body)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if not isinstance(question, dict):
        raise ValueError("not a JSON object")
    fields = {name.lower(): value for name, value in question.items()}
    key, source = fields.get("nodepublic"), fields.get("source", "")
    if not isinstance(key, str):
        raise ValueError("NodePublic is missing or no string")
    if not isinstance(source, str):
        raise ValueError("Source is no string")
    return NodePublic.from_text(key), source
