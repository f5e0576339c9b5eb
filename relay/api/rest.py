"""The plain HTTP endpoints: what the ``coder`` command and agents ask for.

Sources: coder ``coderd/coderd.go`` for the paths, and the handlers it names.
Only what has to do with networking is here. A path that is not gets 404, which
the command takes for an older server's answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from relay.api.agent_logs import LOG_ROUTES
from relay.api.answers import NOT_FOUND, Validation, error_answer, json_answer
from relay.api.context import ApiContext, ApiError, ApiRequest
from relay.api.rest_json import NIL, agent_json, user_json, workspace_json
from relay.api.router import Auth, Route
from relay.pages.page import Response
from relay.store.model import User, Workspace, WorkspaceAgents
from tailnet.control.version import CURRENT

__all__ = ("API_VERSION", "REST_ROUTES")

# Of the Agent and the Tailnet service, which share one number.
API_VERSION: Final = ".".join(str(part) for part in CURRENT)

TEXT: Final = ("Content-Type", "text/plain; charset=utf-8")

# coderd/latencycheck.go: any page may measure, and see the timing.
_LATENCY_HEADERS: Final = (
    ("Timing-Allow-Origin", "*"),
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Headers", "*"),
    ("Access-Control-Allow-Credentials", "false"),
    ("Access-Control-Allow-Methods", "*"),
    TEXT,
)

# codersdk AllowedAppNames.
_APP_NAMES: Final = ("vscode", "jetbrains", "reconnecting-pty", "ssh")

# Go's strconv.ParseBool.
_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


# -- without a token ---------------------------------------------------------


async def _healthz(request: ApiRequest) -> Response:
    """``/healthz``: the server answers."""
    return Response(200, (TEXT,), b"OK")


async def _latency_check(request: ApiRequest) -> Response:
    """``/latency-check``: how long an answer takes, for browsers."""
    return Response(200, _LATENCY_HEADERS, b"OK")


async def _build_info(request: ApiRequest) -> Response:
    """``/buildinfo``: what runs here, and which API it speaks."""
    context = request.context
    return json_answer(
        200,
        {
            "external_url": "",
            "version": context.version,
            "dashboard_url": context.access_url,
            "telemetry": False,
            "workspace_proxy": False,
            "agent_api_version": API_VERSION,
            "provisioner_api_version": "",
            "upgrade_message": "",
            "deployment_id": str(context.deployment_id),
        },
    )


async def _first_user(request: ApiRequest) -> Response:
    """``/users/first``: whether there is any user; ``coder login`` asks."""
    if not await request.context.store.list_users():
        return error_answer(404, "The initial user has not been created!")
    return error_answer(200, "The initial user has already been created!")


async def _appearance(request: ApiRequest) -> Response:
    """``/appearance``: no name, no logo, no banners."""
    return json_answer(
        200,
        {
            "application_name": "",
            "logo_url": "",
            "docs_url": "",
            "service_banner": {"enabled": False},
            "announcement_banners": [],
            "support_links": [],
        },
    )


# -- the deployment ----------------------------------------------------------


async def _ssh_config(request: ApiRequest) -> Response:
    """``/deployment/ssh``: how to name workspaces in an SSH configuration."""
    return json_answer(
        200,
        {
            "hostname_prefix": "coder.",
            "hostname_suffix": request.context.settings.workspace_hostname_suffix,
            "ssh_config_options": {},
        },
    )


async def _regions(request: ApiRequest) -> Response:
    """``/regions``: this server, as the one proxy region there is."""
    context = request.context
    region = {
        "id": str(context.deployment_id),
        "name": "primary",
        "display_name": "Default",
        "icon_url": "",
        "healthy": True,
        "path_app_url": context.access_url,
        "wildcard_hostname": "",
    }
    return json_answer(200, {"regions": [region]})


# -- users -------------------------------------------------------------------


async def _user_param(request: ApiRequest) -> User:
    """The user of the path, by ``me``, id or name.

    Whoever may not see them is told the same as for one who does not exist
    (coder ``coderd/httpmw/userparam.go``).

    Raises:
        ApiError: There is no such user, for this one.
    """
    text, me = request.params["user"], request.need_user()
    if text == "me":
        return me
    store = request.context.store
    try:
        user = await store.get_user(UUID(text))
    except ValueError:
        user = await store.find_user(text)
    if user is None or not await request.context.authorizer.may_watch(me, user.id):
        raise ApiError(
            error_answer(
                400,
                '"user" must be an existing uuid or username.',
                f'queried user="{text}"',
            )
        )
    return user


async def _get_user(request: ApiRequest) -> Response:
    """``/users/{user}``."""
    return json_answer(200, user_json(await _user_param(request)))


async def _create_key(request: ApiRequest) -> Response:
    """``POST /users/me/keys``: another API key, which ``coder login`` keeps.

    For oneself only, so that nobody acts in another's name.
    """
    user = await _user_param(request)
    if user.id != request.need_user().id:
        return NOT_FOUND
    new = await request.context.store.create_api_key(user.id, name="login")
    return json_answer(201, {"key": new.token})


# -- workspaces --------------------------------------------------------------


async def _agents_of(context: ApiContext, workspace: Workspace) -> WorkspaceAgents:
    return WorkspaceAgents(workspace, await context.store.list_agents(workspace.id))


async def _workspace_param(request: ApiRequest) -> Workspace:
    """The workspace of the path.

    Raises:
        ApiError: There is none, for this user.
    """
    workspace_id = request.uuid_param("workspace")
    workspace = await request.context.store.get_workspace(workspace_id)
    if workspace is None or not await request.context.authorizer.may_watch(
        request.need_user(), workspace.owner_id
    ):
        raise ApiError(NOT_FOUND)
    return workspace


async def _workspace_by_name(request: ApiRequest) -> Response:
    """``/users/{user}/workspace/{name}``."""
    owner = await _user_param(request)
    include_deleted = request.query("include_deleted")
    if include_deleted and include_deleted not in _BOOLEANS:
        wrong = Validation("include_deleted", "Must be a valid boolean")
        return error_answer(
            400,
            f'Invalid boolean value "{include_deleted}" for "include_deleted" '
            "query param.",
            validations=(wrong,),
        )
    workspace = await request.context.store.find_workspace(
        owner.username, request.params["name"]
    )
    if workspace is None:
        return NOT_FOUND
    item = await _agents_of(request.context, workspace)
    return json_answer(200, workspace_json(item, _now()))


async def _workspace(request: ApiRequest) -> Response:
    """``/workspaces/{workspace}``."""
    found = await _workspace_param(request)
    item = await _agents_of(request.context, found)
    return json_answer(200, workspace_json(item, _now()))


async def _workspaces(request: ApiRequest) -> Response:
    """``/workspaces?q=owner:me name:x``: those that the user may see."""
    context, me = request.context, request.need_user()
    owner, name = _parse_search(request.query("q"))
    if owner == "me":
        owners: Sequence[User] = [me]
    elif owner:
        found = await context.store.find_user(owner)
        owners = [] if found is None else [found]
    else:
        owners = await context.store.list_users()
    items = [
        item
        for user in owners
        if await context.authorizer.may_watch(me, user.id)
        for item in await context.store.workspaces_of(user.id)
        if name in item.workspace.name.lower()
    ]
    now = _now()
    listed = [workspace_json(item, now) for item in items]
    return json_answer(200, {"workspaces": listed, "count": len(listed)})


def _parse_search(text: str) -> tuple[str, str]:
    """Owner and part of a name that a search asks for (coderd/searchquery).

    Raises:
        ApiError: It asks for something else.
    """
    try:
        terms = shlex.split(text)
    except ValueError as exc:
        raise _bad_search(str(exc)) from exc
    owner = name = ""
    for term in terms:
        key, colon, value = term.partition(":")
        if not colon:  # a bare word is [owner/]name
            before, slash, name = term.rpartition("/")
            owner = before if slash else owner
        elif key.lower() == "owner":
            owner = value
        elif key.lower() == "name":
            name = value
        else:
            raise _bad_search(f'"{key}" is not a valid query param')
    return owner, name.lower()


def _bad_search(detail: str) -> ApiError:
    wrong = Validation("q", detail)
    return ApiError(
        error_answer(400, "Invalid workspace search query.", validations=(wrong,))
    )


async def _workspace_usage(request: ApiRequest) -> Response:
    """``POST /workspaces/{workspace}/usage``: somebody uses it.

    Nothing here stops workspaces that nobody uses, so it is checked and
    forgotten.
    """
    found = await _workspace_param(request)
    if not request.request.body:
        return Response(204)
    try:
        usage = msgspec.json.decode(request.request.body, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        return error_answer(400, "Request body must be valid JSON.", str(exc))
    agent, app = usage.get("agent_id") or "", usage.get("app_name") or ""
    if agent == NIL:
        agent = ""
    if not agent and not app:
        return Response(204)
    if not agent:
        return _bad_usage("agent_id", "must be set when app_name is set")
    if not app:
        return _bad_usage("app_name", "must be set when agent_id is set")
    if app not in _APP_NAMES:
        return _bad_usage("app_name", f"must be one of [{' '.join(_APP_NAMES)}]")
    try:
        agent_id = UUID(agent)
    except (ValueError, AttributeError, TypeError):
        return _bad_usage("agent_id", "must be a UUID")
    used = await request.context.store.get_agent(agent_id)
    if used is None or used.workspace_id != found.id:
        return NOT_FOUND
    return Response(204)


def _bad_usage(field: str, detail: str) -> Response:
    return error_answer(
        400, "Invalid request", validations=(Validation(field, detail),)
    )


async def _template_version(request: ApiRequest) -> Response:
    """``/templateversions/{version}``: the one of all workspaces, or none.

    ``coder ssh`` asks for the version of a workspace and needs an answer.
    """
    if request.uuid_param("version") != UUID(NIL):
        return NOT_FOUND
    return json_answer(200, {"id": NIL, "name": "", "message": "", "readme": ""})


# -- agents ------------------------------------------------------------------


async def _agent(request: ApiRequest) -> Response:
    """``/workspaceagents/{agent}``: what it is, and whether it is there."""
    identity = await request.agent_param()
    return json_answer(200, agent_json(identity.agent, _now()))


async def _reinit(request: ApiRequest) -> Response:
    """``/workspaceagents/me/reinit``: when is a prebuilt workspace claimed?

    There are none, and agents ask again and again: it has to be cheap.
    """
    return _NOT_PREBUILT


_NOT_PREBUILT: Final = error_answer(409, "Workspace is not a prebuilt workspace.")


async def _git_ssh_key(request: ApiRequest) -> Response:
    """``/workspaceagents/me/gitsshkey``: no user has a key here."""
    return error_answer(
        404, "This server keeps no SSH keys.", "Use the keys of the workspace itself."
    )


async def _external_auth(request: ApiRequest) -> Response:
    """``/workspaceagents/me/external-auth``, and ``gitauth`` as it was once."""
    wanted, match = request.query("id"), request.query("match")
    if bool(wanted) == bool(match):
        return error_answer(
            400, 'Either "id" or "match" must be provided as a query parameter.'
        )
    asked = f'with id "{wanted}"' if wanted else f'matching "{match}"'
    return error_answer(
        404,
        f"No external auth provider {asked} is configured.",
        "This server has no external auth providers.",
    )


async def _log_source(request: ApiRequest) -> Response:
    """``POST /workspaceagents/me/log-source``: a source names itself.

    Logs are kept by the id of their source, so it is checked and echoed.
    """
    try:
        source = msgspec.json.decode(request.request.body, type=_LogSource)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        return error_answer(400, "Request body must be valid JSON.", str(exc))
    return json_answer(
        201,
        {
            "workspace_agent_id": str(request.need_agent().agent.id),
            "id": str(source.id),
            "created_at": _now(),
            "display_name": source.display_name,
            "icon": source.icon,
        },
    )


class _LogSource(msgspec.Struct):
    id: UUID
    display_name: str = ""
    icon: str = ""


def _now() -> datetime:
    return datetime.now(UTC)


def _api(method: str, path: str, handler: Any, auth: Auth = Auth.USER) -> Route:
    return Route(method, f"/api/v2{path}", handler, auth)


REST_ROUTES: Final = (
    Route("GET", "/healthz", _healthz, Auth.NONE),
    Route("GET", "/latency-check", _latency_check, Auth.NONE),
    _api("GET", "/buildinfo", _build_info, Auth.NONE),
    _api("GET", "/appearance", _appearance, Auth.NONE),
    _api("GET", "/users/first", _first_user, Auth.NONE),
    _api("GET", "/deployment/ssh", _ssh_config),
    _api("GET", "/regions", _regions),
    _api("GET", "/users/{user}", _get_user),
    _api("POST", "/users/{user}/keys", _create_key),
    _api("GET", "/users/{user}/workspace/{name}", _workspace_by_name),
    _api("GET", "/workspaces", _workspaces),
    _api("GET", "/workspaces/{workspace}", _workspace),
    _api("POST", "/workspaces/{workspace}/usage", _workspace_usage),
    _api("GET", "/templateversions/{version}", _template_version),
    _api("GET", "/workspaceagents/{agent}", _agent),
    # An agent asks again and again, as if 409 could change.
    replace(
        _api("GET", "/workspaceagents/me/reinit", _reinit, Auth.AGENT), is_polled=True
    ),
    _api("GET", "/workspaceagents/me/gitsshkey", _git_ssh_key, Auth.AGENT),
    _api("GET", "/workspaceagents/me/external-auth", _external_auth, Auth.AGENT),
    _api("GET", "/workspaceagents/me/gitauth", _external_auth, Auth.AGENT),
    _api("POST", "/workspaceagents/me/log-source", _log_source, Auth.AGENT),
    *LOG_ROUTES,
)
