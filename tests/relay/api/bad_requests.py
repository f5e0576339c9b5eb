"""What may be wrong with a request, and what each endpoint says to it.

The wrongs come from the route tables: who may ask, what is in the path, which
methods there are. What the tables do not say of an endpoint is in ``SHAPES``;
an endpoint without a shape has no row in the matrix, which a test notices.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias
from uuid import UUID

from relay.api.router import Auth, Route
from relay.store.model import User
from tailnet.coordinator.resume import TOKEN_LIFETIME, ResumeTokens
from tests.relay.api.rig import Rig

__all__ = ("METHODS", "SHAPES", "Ask", "Expected", "Shape", "good", "key_of", "wrongs")

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

NIL: Final = UUID(int=0)
NOBODY: Final = UUID("99999999-9999-4999-8999-999999999999")
VERIFY_TOKEN: Final = "sesame"
HOST: Final = "tailnet.example"

WEBSOCKET: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}

# A message, or a body that is not in JSON.
Body: TypeAlias = Mapping[str, Any] | str

# Of which the rest is the JSON library's own words.
BAD_JSON: Final = "Request body must be valid JSON."


@dataclass(frozen=True)
class Shape:
    """What there is to know of an endpoint besides its route.

    Attributes:
        is_websocket: It answers 101.
        no_version: What no version means; empty if there are none.
        takes_resume_token: It takes one.
        body: That it takes.
        bad: Query, body, status and message of other things that it refuses.
    """

    is_websocket: bool = False
    no_version: str = ""
    takes_resume_token: bool = False
    body: str = ""
    bad: tuple[tuple[str, str, int, str], ...] = ()


_API: Final = "/api/v2"
_KEY: Final = f"nodekey:{'1' * 64}"
SHAPES: Final[Mapping[str, Shape]] = {
    f"GET {_API}/derp-map": Shape(is_websocket=True),
    f"GET {_API}/workspaceagents/connection": Shape(),
    f"GET {_API}/workspaceagents/{{agent}}/connection": Shape(),
    f"GET {_API}/workspaceagents/{{agent}}/coordinate": Shape(
        is_websocket=True, no_version="1.0", takes_resume_token=True
    ),
    f"GET {_API}/tailnet": Shape(
        is_websocket=True, no_version="2.0", takes_resume_token=True
    ),
    f"GET {_API}/workspaceagents/me/rpc": Shape(is_websocket=True, no_version="2.0"),
    "GET /healthz": Shape(),
    "GET /latency-check": Shape(),
    f"GET {_API}/buildinfo": Shape(),
    f"GET {_API}/appearance": Shape(),
    f"GET {_API}/users/first": Shape(),
    f"GET {_API}/deployment/ssh": Shape(),
    f"GET {_API}/regions": Shape(),
    f"GET {_API}/users/{{user}}": Shape(),
    f"POST {_API}/users/{{user}}/keys": Shape(),
    f"GET {_API}/users/{{user}}/workspace/{{name}}": Shape(
        bad=(
            (
                "include_deleted=maybe",
                "",
                400,
                'Invalid boolean value "maybe" for "include_deleted" query param.',
            ),
        )
    ),
    f"GET {_API}/workspaces": Shape(
        bad=(("q=status:running", "", 400, "Invalid workspace search query."),)
    ),
    f"GET {_API}/workspaces/{{workspace}}": Shape(),
    f"POST {_API}/workspaces/{{workspace}}/usage": Shape(
        bad=(
            ("", "{", 400, BAD_JSON),
            ("", "[]", 400, BAD_JSON),
            ("", '{"app_name": "ssh"}', 400, "Invalid request"),
        )
    ),
    f"GET {_API}/templateversions/{{version}}": Shape(),
    f"GET {_API}/workspaceagents/{{agent}}": Shape(),
    f"GET {_API}/workspaceagents/{{agent}}/logs": Shape(
        bad=(
            ("after=-1", "", 400, "Query parameters have invalid values."),
            (
                "follow",
                "",
                426,
                (
                    'WebSocket protocol violation: Connection header "" does not '
                    "contain Upgrade\n"
                ),
            ),
        )
    ),
    f"GET {_API}/workspaceagents/me/reinit": Shape(
        bad=(("", "", 409, "Workspace is not a prebuilt workspace."),)
    ),
    f"GET {_API}/workspaceagents/me/gitsshkey": Shape(
        bad=(("", "", 404, "This server keeps no SSH keys."),)
    ),
    **{
        f"GET {_API}/workspaceagents/me/{name}": Shape(
            bad=(
                (
                    "",
                    "",
                    400,
                    'Either "id" or "match" must be provided as a query parameter.',
                ),
                (
                    "id=github",
                    "",
                    404,
                    'No external auth provider with id "github" is configured.',
                ),
            )
        )
        for name in ("external-auth", "gitauth")
    },
    f"POST {_API}/workspaceagents/me/log-source": Shape(
        body=f'{{"id": "{NOBODY}"}}',
        bad=(("", "{}", 400, BAD_JSON), ("", "\0", 400, BAD_JSON)),
    ),
    f"GET {_API}/debug/coordinator": Shape(),
    f"GET {_API}/debug/tailnet": Shape(),
    f"GET {_API}/debug/ws": Shape(is_websocket=True),
    "POST /derp/verify": Shape(
        body=f'{{"NodePublic": "{_KEY}"}}',
        bad=(
            ("", "", 400, BAD_JSON),
            ("", '{"NodePublic": "nodekey:12"}', 400, BAD_JSON),
            ("", " " * 4097, 413, "Request body too large."),
        ),
    ),
}


def key_of(route: Route) -> str:
    """How a route is called in ``SHAPES``, and in the reference."""
    return f"{route.method} {route.pattern}"


@dataclass(frozen=True)
class Ask:
    """A request."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] | None = None
    body: str = ""

    def encode(self) -> bytes:
        target = f"{self.path}?{self.query}" if self.query else self.path
        headers = {"Host": HOST, **(self.headers or {})}
        if self.body:
            headers["Content-Length"] = str(len(self.body))
        lines = [f"{self.method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join((*lines, "", "")) + self.body).encode()

    def without(self, *names: str) -> Ask:
        kept = {k: v for k, v in (self.headers or {}).items() if k not in names}
        return replace(self, headers=kept)

    def having(self, **headers: str) -> Ask:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={**(self.headers or {}), **more})


@dataclass(frozen=True)
class Expected:
    """An answer.

    Attributes:
        status: Of it.
        body: JSON or text; its ``detail`` may be the words of a library.
        rule: Words of the reference that say so; empty if the status is in the
            endpoint's own row.
    """

    status: int
    body: Body
    rule: str = ""


def good(route: Route, rig: Rig) -> Ask:
    """A request that the endpoint does what it is for."""
    shape = SHAPES[key_of(route)]
    path = route.pattern.format(
        agent=rig.agent.agent.id,
        workspace=rig.workspace.id,
        user=rig.alice.username,
        name=rig.workspace.name,
        version=NIL,
    )
    headers = dict(WEBSOCKET) if shape.is_websocket else {}
    if route.pattern == "/derp/verify":
        headers["Authorization"] = f"Bearer {VERIFY_TOKEN}"
    token = _token(route.auth, rig)
    if token:
        headers["Coder-Session-Token"] = token
    query = "version=2.0" if shape.no_version else ""
    return Ask(route.method, path, query, headers, shape.body)


def _token(auth: Auth, rig: Rig) -> str:
    return {
        Auth.NONE: "",
        Auth.USER: rig.token,
        Auth.ADMIN: rig.root_token,
        Auth.AGENT: str(rig.agent_token),
    }[auth]


def wrongs(route: Route, rig: Rig) -> Iterator[tuple[str, Ask, Expected]]:
    """All that may be wrong with a request to an endpoint, one at a time."""
    shape, ask = SHAPES[key_of(route)], good(route, rig)
    yield from _wrong_tokens(route, rig, ask)
    yield from _wrong_owners(route, rig, ask)
    yield from _wrong_ids(route, ask, rig)
    if shape.no_version:
        yield from _wrong_versions(shape, ask)
    if shape.takes_resume_token:
        yield from _wrong_resume_tokens(ask, rig)
    if shape.is_websocket:
        yield from _wrong_upgrades(ask)
    for query, body, status, message in shape.bad:
        what = f"query {query!r}, body {body[:10]!r}"
        expected = Expected(status, {"message": message})
        if status == 426:
            expected = Expected(status, message, rule=_UPGRADE_RULE)
        yield what, replace(ask, query=query, body=body), expected


# -- who asks -----------------------------------------------------------------

SIGNED_OUT: Final = (
    "You are signed out or your session has expired. Please sign in again to continue."
)
_TOKEN_RULE: Final = "A missing or wrong token is 401"


def _wrong_tokens(
    route: Route, rig: Rig, ask: Ask
) -> Iterator[tuple[str, Ask, Expected]]:
    if route.pattern == "/derp/verify":
        yield from _wrong_bearers(ask)
        return
    if route.auth is Auth.NONE:
        return
    secret = "0123456789-0123456789012345678901"
    answers: dict[str, tuple[str, Body]]
    if route.auth is Auth.AGENT:
        parts = "The agent cannot authenticate until the workspace provision job has "
        parts += "been completed. If the job is no longer running, this agent is "
        parts += "invalid."
        unknown = {"message": "Workspace agent not authorized.", "detail": parts}

        def malformed(length: int) -> Body:
            detail = f"An agent token must be a valid UUIDv4. (len {length})"
            return {"message": "Workspace agent token invalid.", "detail": detail}

        missing = {"message": 'Cookie "coder_session_token" must be provided.'}
        answers = {
            "no token": ("", missing),
            "wrong token": (str(NOBODY), unknown),
            "malformed token": ("abc", malformed(3)),
            "a user's token": (rig.token, malformed(len(rig.token))),
        }
    else:

        def signed_out(detail: str) -> Body:
            return {"message": SIGNED_OUT, "detail": detail}

        shape = "Invalid API key format: incorrect amount of API key parts, "
        answers = {
            "no token": (
                "",
                signed_out(
                    'Cookie "coder_session_token" or query parameter must be provided.'
                ),
            ),
            "wrong token": (secret, signed_out("API key is invalid.")),
            "malformed token": ("abc", signed_out(f"{shape}expected 2 got 1")),
            "an agent's token": (
                str(rig.agent_token),
                signed_out(f"{shape}expected 2 got 5"),
            ),
        }
    bare = ask.without("Coder-Session-Token")
    for what, (token, body) in answers.items():
        asked = bare if not token else bare.having(Coder_Session_Token=token)
        yield what, asked, Expected(401, body, rule=_TOKEN_RULE)
    # In the other places, too.
    token, body = answers["wrong token"]
    cookie = bare.having(Cookie=f"coder_session_token={token}")
    yield "wrong cookie", cookie, Expected(401, body, rule=_TOKEN_RULE)
    query = "&".join(filter(None, (bare.query, f"coder_session_token={token}")))
    asked = replace(bare, query=query)
    yield "wrong token in the query", asked, Expected(401, body, rule=_TOKEN_RULE)


def _wrong_bearers(ask: Ask) -> Iterator[tuple[str, Ask, Expected]]:
    body = {"message": "The token is missing or wrong."}
    expected = Expected(401, body, rule="| 200; 400; 401;")
    yield "no token", ask.without("Authorization"), expected
    basic = base64.b64encode(b"derper:wrong").decode()
    for what, value in (
        ("wrong token", "Bearer mustard"),
        ("malformed token", "Basic !"),
        ("wrong password", f"Basic {basic}"),
        ("another scheme", f"Digest {VERIFY_TOKEN}"),
    ):
        yield what, ask.having(Authorization=value), expected


# -- whose it is, and what it is called -----------------------------------------

NOT_FOUND: Final = {
    "message": "Resource not found or you do not have access to this resource"
}
NO_AGENT: Final = {
    "message": "Agent doesn't exist with that id, or you do not have access to it."
}
_NOT_YOURS: Final = "is answered like what does not exist: 404, or 400 for users"


def _no_user(name: object) -> Body:
    return {
        "message": '"user" must be an existing uuid or username.',
        "detail": f'queried user="{name}"',
    }


def _wrong_owners(
    route: Route, rig: Rig, ask: Ask
) -> Iterator[tuple[str, Ask, Expected]]:
    theirs = ask.having(Coder_Session_Token=rig.bob_token)
    if route.auth is Auth.ADMIN:
        detail = "You don't have permission to view this content. If you believe "
        detail += "this is a mistake, please contact your administrator or try "
        detail += "signing in with different credentials."
        body = {"message": "Forbidden.", "detail": detail}
        yield "no admin", theirs, Expected(403, body, rule="200, 403")
    if "{agent}" in route.pattern:
        yield "another's agent", theirs, Expected(404, NO_AGENT, rule=_NOT_YOURS)
    elif "{workspace}" in route.pattern:
        yield "another's workspace", theirs, Expected(404, NOT_FOUND, rule=_NOT_YOURS)
    elif "{user}" in route.pattern:
        user: User = rig.alice
        body = dict(_no_user(user.username))  # type: ignore[arg-type]
        yield "another user", theirs, Expected(400, body, rule=_NOT_YOURS)


def _wrong_ids(route: Route, ask: Ask, rig: Rig) -> Iterator[tuple[str, Ask, Expected]]:
    ids = {
        "{agent}": (str(rig.agent.agent.id), NO_AGENT),
        "{workspace}": (str(rig.workspace.id), NOT_FOUND),
        "{version}": (str(NIL), NOT_FOUND),
    }
    for param, (right, missing) in ids.items():
        if param not in route.pattern:
            continue
        other = replace(ask, path=ask.path.replace(right, str(NOBODY)))
        yield "nobody's id", other, Expected(404, missing, rule=_NOT_YOURS)
        for text, detail in (
            ("x", "invalid UUID length: 1"),
            (f"{right[:-1]}g", "invalid UUID format"),
        ):
            body = {"message": f'Invalid UUID "{text}".', "detail": detail}
            bad = replace(ask, path=ask.path.replace(right, text))
            yield (
                f"bad UUID {text}",
                bad,
                Expected(400, body, rule='is 400 `Invalid UUID "..."`'),
            )
    if "{user}" in route.pattern:
        for name in ("nobody", str(NOBODY)):
            other = replace(ask, path=ask.path.replace(rig.alice.username, name))
            expected = Expected(400, _no_user(name), rule=_NOT_YOURS)
            yield f"no such user, {name}", other, expected
    if "{name}" in route.pattern:
        other = replace(ask, path=f"{ask.path}s")
        yield "no such workspace", other, Expected(404, NOT_FOUND, rule=_NOT_YOURS)


# -- versions, tokens, websockets -----------------------------------------------


def _wrong_versions(shape: Shape, ask: Ask) -> Iterator[tuple[str, Ask, Expected]]:
    server = "server is at version 2.11, behind requested"
    wrong = {
        "version=1.0": "version 1.0 is no longer supported",
        "version=2.99": f"{server} minor version 2.99",
        "version=3.0": f"{server} major version 3.0",
        "version=two": "invalid version string: two",
        "version=2": "invalid version string: 2",
        "version=2.x": "invalid minor version: 2.x",
    }
    if shape.no_version == "1.0":
        wrong[""] = wrong["version="] = wrong["version=1.0"]
    for query, detail in wrong.items():
        body = {
            "message": "Unknown or unsupported API version",
            "validations": [{"field": "version", "detail": detail}],
        }
        yield (
            f"query {query!r}",
            replace(ask, query=query),
            Expected(400, body, rule="400 version"),
        )


def _wrong_resume_tokens(ask: Ask, rig: Rig) -> Iterator[tuple[str, Ask, Expected]]:
    # The rig's clock stands still at 1.8e9, and this is its key.
    key, other = ("kid", bytes(range(64))), bytes(range(1, 65))
    past = 1.8e9 - TOKEN_LIFETIME.total_seconds()

    def issued(now: float, kid: str, secret: bytes) -> str:
        return ResumeTokens(lambda: now, [(kid, secret)]).issue(NOBODY).token

    right = issued(1.8e9, *key)
    assert rig.context.resume_tokens.verify(right) == NOBODY
    header, claims, signature = right.split(".")
    tokens = {
        "expired": (issued(past, *key), "expired"),
        "forged": (issued(1.8e9, "kid", other), "not valid: Signature"),
        "of an unknown key": (issued(1.8e9, "kid2", other), "signed with an unknown"),
        "cut": (f"{header}.{claims}", "not a token"),
        "garbage": ("garbage", "not a token"),
        "with other claims": (
            f"{header}.{issued(1.9e9, *key).split('.')[1]}.{signature}",
            "not valid: Signature",
        ),
    }
    for what, (token, detail) in tokens.items():
        body = {
            "message": "Invalid resume token",
            "detail": detail,
            "validations": [
                {"field": "resume_token", "detail": "Invalid resume token"}
            ],
        }
        yield (
            f"resume token {what}",
            replace(ask, query=f"version=2.0&resume_token={token}"),
            Expected(401, body, rule="401 resume token"),
        )


_UPGRADE_RULE: Final = "no upgrade is 426, a foreign `Origin` 403"


def _wrong_upgrades(ask: Ask) -> Iterator[tuple[str, Ask, Expected]]:
    rule = _UPGRADE_RULE
    missing = 'WebSocket protocol violation: {} header "" does not contain {}\n'
    yield (
        "no upgrade",
        ask.without(*WEBSOCKET),
        Expected(426, missing.format("Connection", "Upgrade"), rule=rule),
    )
    yield (
        "an upgrade to nothing",
        ask.without("Upgrade"),
        Expected(426, missing.format("Upgrade", "websocket"), rule=rule),
    )
    for origin, text in (
        (
            "https://evil.example",
            f'request Origin "evil.example" is not authorized for Host "{HOST}"\n',
        ),
        ("null", 'request Origin "null" is not a valid URL with a host\n'),
    ):
        yield (
            f"Origin {origin}",
            ask.having(Origin=origin),
            Expected(403, text, rule=rule),
        )
    for what, headers, text in (
        (
            "websocket version",
            {"Sec_WebSocket_Version": "12"},
            ('unsupported WebSocket protocol version (only 13 is supported): "12"\n'),
        ),
        (
            "websocket key",
            {"Sec_WebSocket_Key": "abc"},
            (
                'WebSocket protocol violation: invalid Sec-WebSocket-Key "abc", '
                "must be a 16 byte base64 encoded string\n"
            ),
        ),
    ):
        expected = Expected(400, text, rule="400 for what is no handshake")
        yield f"wrong {what}", ask.having(**headers), expected
