"""Which endpoint answers a request, and whether its sender may ask.

The order is Coder's: rate limit, route, token, and only then the endpoint.
"""

from __future__ import annotations

import enum
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from uuid import UUID

import structlog

from relay.api.answers import FORBIDDEN, ROUTE_NOT_FOUND, error_answer
from relay.api.context import VERSION_HEADER, ApiContext, ApiError, ApiRequest
from relay.front.application import Takeover
from relay.pages.page import Request, Response
from relay.store.model import AgentIdentity, User
from tailnet.errors import StoreUnavailableError

__all__ = ("Auth", "Handler", "Route", "Router", "session_token")

log = structlog.get_logger("relay.api")

Handler: TypeAlias = Callable[[ApiRequest], Awaitable[Response | Takeover]]

API_PREFIX: Final = "/api/"

# codersdk: the names of the cookie, the query parameter and the header.
TOKEN_NAME: Final = "coder_session_token"  # noqa: S105
TOKEN_HEADER: Final = "coder-session-token"  # noqa: S105

# coder coderd/httpmw/apikey.go
SIGNED_OUT: Final = (
    "You are signed out or your session has expired. Please sign in again to continue."
)
_KEY_ID_LEN: Final = 10
_KEY_SECRET_LEN: Final = 22


class Auth(enum.Enum):
    """Whose token a route asks for."""

    NONE = enum.auto()
    USER = enum.auto()
    ADMIN = enum.auto()
    AGENT = enum.auto()


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    Attributes:
        method: ``GET`` answers ``HEAD`` too.
        pattern: The path; ``{name}`` stands for one part of it.
        handler: Answers.
        auth: Who may ask.
        is_polled: A refusal is nothing to log each time.
    """

    method: str
    pattern: str
    handler: Handler
    auth: Auth = Auth.USER
    is_polled: bool = False


@dataclass(slots=True)
class _Path:
    """The endpoints of one path, by method."""

    parts: tuple[str, ...]
    routes: dict[str, Route] = field(default_factory=dict)

    @property
    def is_polled(self) -> bool:
        return any(route.is_polled for route in self.routes.values())

    def match(self, parts: tuple[str, ...]) -> Mapping[str, str] | None:
        params: dict[str, str] = {}
        for mine, theirs in zip(self.parts, parts, strict=True):
            if mine.startswith("{"):
                if not theirs:
                    return None
                params[mine[1:-1]] = theirs
            elif mine != theirs:
                return None
        return params


class Router:
    """The application of the API.

    Args:
        context: The rooms behind it.
        routes: Of two that match, a path without parameters is taken first.
        limit: Answers a request that comes too often, else None.
    """

    def __init__(
        self,
        context: ApiContext,
        routes: Iterable[Route],
        *,
        limit: Callable[[Request, User | None], Response | None] | None = None,
    ) -> None:
        self._context = context
        self._limit = limit
        by_pattern: dict[str, _Path] = {}
        for route in routes:
            path = by_pattern.setdefault(
                route.pattern, _Path(tuple(route.pattern.split("/")))
            )
            path.routes[route.method] = route
        # By number of parts; constant ones first.
        self._paths: dict[int, list[_Path]] = {}
        for path in sorted(by_pattern.values(), key=lambda p: _wildness(p.parts)):
            self._paths.setdefault(len(path.parts), []).append(path)

    def knows(self, path: str) -> bool:
        """Whether a path is the API's, be it only to say that it is not there."""
        return path.startswith(API_PREFIX) or self._find(path)[0] is not None

    async def answer(self, request: Request) -> Response | Takeover:
        """Answer one request, whatever it is."""
        path, params = self._find(request.path)
        try:
            answer = await self._answer(request, path, params)
        except ApiError as exc:
            answer = exc.answer
        except StoreUnavailableError as exc:
            log.error("the store does not answer", path=request.path, reason=str(exc))
            # coder codersdk/database.go
            answer = error_answer(500, "database not reachable", str(exc))
        if isinstance(answer, Response):
            if answer.status >= 400:
                polled = path is not None and path.is_polled
                (log.debug if polled else log.info)(
                    "refused",
                    method=request.method,
                    path=request.path,
                    status=answer.status,
                    remote=request.remote,
                )
            answer = _with_version(answer, self._context.version)
        return answer

    async def _answer(
        self, request: Request, path: _Path | None, params: Mapping[str, str]
    ) -> Response | Takeover:
        if path is None:
            return ROUTE_NOT_FOUND
        method = "GET" if request.method == "HEAD" else request.method
        route = path.routes.get(method)
        if route is None:
            # go-chi: an empty 405 that says what there is (RFC 9110 15.5.6).
            return Response(405, (("Allow", ", ".join(sorted(path.routes))),))
        user: User | None = None
        agent: AgentIdentity | None = None
        refusal: Response | None = None
        if route.auth is Auth.AGENT:
            try:
                agent = await self._authenticate_agent(request)
            except ApiError as exc:
                refusal = exc.answer
        elif route.auth is not Auth.NONE:
            try:
                user = await self._authenticate_user(request)
            except ApiError as exc:
                refusal = exc.answer
        if self._limit is not None:
            too_many = self._limit(request, user)
            if too_many is not None:
                return too_many
        if refusal is not None:
            return refusal
        if route.auth is Auth.ADMIN:
            assert user is not None
            if not await self._context.authorizer.may_debug(user):
                return FORBIDDEN
        return await route.handler(
            ApiRequest(request, params, self._context, user, agent)
        )

    def _find(self, path: str) -> tuple[_Path | None, Mapping[str, str]]:
        parts = tuple(path.split("/"))
        if len(parts) > 2 and not parts[-1]:
            parts = parts[:-1]
        for candidate in self._paths.get(len(parts), ()):
            params = candidate.match(parts)
            if params is not None:
                return candidate, params
        return None, {}

    async def _authenticate_user(self, request: Request) -> User:
        token = session_token(request)
        if not token:
            detail = f'Cookie "{TOKEN_NAME}" or query parameter must be provided.'
            raise ApiError(error_answer(401, SIGNED_OUT, detail))
        user = await self._context.authenticator.authenticate_user(token)
        if user is None:
            raise ApiError(error_answer(401, SIGNED_OUT, _what_is_wrong(token)))
        return user

    async def _authenticate_agent(self, request: Request) -> AgentIdentity:
        # Texts: coder coderd/httpmw/workspaceagent.go
        token = session_token(request)
        if not token:
            text = f'Cookie "{TOKEN_NAME}" must be provided.'
            raise ApiError(error_answer(401, text))
        identity = await self._context.authenticator.authenticate_agent(token)
        if identity is not None:
            return identity
        try:
            UUID(token)
        except ValueError:
            detail = f"An agent token must be a valid UUIDv4. (len {len(token)})"
            raise ApiError(
                error_answer(401, "Workspace agent token invalid.", detail)
            ) from None
        raise ApiError(
            error_answer(
                401,
                "Workspace agent not authorized.",
                "The agent cannot authenticate until the workspace provision job has "
                "been completed. If the job is no longer running, this agent is "
                "invalid.",
            )
        )


def _wildness(parts: tuple[str, ...]) -> tuple[bool, ...]:
    return tuple(part.startswith("{") for part in parts)


def _with_version(answer: Response, version: str) -> Response:
    return Response(
        answer.status,
        (*answer.headers, (VERSION_HEADER, version)),
        answer.body,
        answer.close,
    )


def session_token(request: Request) -> str:
    """The token of a request: cookie, query parameter or header, in this order.

    Source: coder ``coderd/httpmw/apikey.go`` APITokenFromRequest.
    """
    # Not http.cookies: it gives up at the first cookie that it does not like,
    # and the others are somebody else's.
    for name, value in request.headers:
        if name == b"cookie":
            for cookie in value.decode("latin-1").split(";"):
                key, _, token = cookie.strip().partition("=")
                if key == TOKEN_NAME and (token := token.strip('"')):
                    return token
    query = urllib.parse.parse_qs(request.query)
    if query.get(TOKEN_NAME):
        return query[TOKEN_NAME][0]
    return request.header(TOKEN_HEADER)


def _what_is_wrong(token: str) -> str:
    """Why an API key is refused, in the words of apikey.go SplitAPIToken."""
    parts = token.split("-")
    wrong = ""
    if len(parts) != 2:
        wrong = f"incorrect amount of API key parts, expected 2 got {len(parts)}"
    elif len(parts[0]) != _KEY_ID_LEN:
        wrong = f"invalid API key ID length, expected {_KEY_ID_LEN} got {len(parts[0])}"
    elif len(parts[1]) != _KEY_SECRET_LEN:
        wrong = (
            f"invalid API key secret length, expected {_KEY_SECRET_LEN} "
            f"got {len(parts[1])}"
        )
    return f"Invalid API key format: {wrong}" if wrong else "API key is invalid."
