"""The pages: for clients that measure, for portals, for people."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tests.interop.probe.answers import Json
from tests.interop.probe.http import Reply, exchange, head, read_reply
from tests.interop.probe.scenario import Case, Scenario, run_cases
from tests.interop.probe.wire import Target, open_wire

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")


def _ask(
    target: Target,
    method: str,
    path: str,
    headers: Iterable[tuple[str, str]] = (),
    *,
    version: str = "HTTP/1.1",
    port: int | None = None,
) -> Case:
    request = head(target, method=method, path=path, version=version, headers=headers)
    if port is None:
        return partial(exchange, target, request, method=method)
    # The helper port is plain on every relay.
    return partial(exchange, target, request, method=method, port=port, tls=False)


async def pages(target: Target) -> dict[str, Json]:
    ask = partial(_ask, target)
    cases: dict[str, Case] = {
        f"{method} {path}": ask(method, path)
        for path in (
            "/",
            "/robots.txt",
            "/derp/probe",
            "/derp/latency-check",
            "/generate_204",
            "/no/such/page",
        )
        for method in _METHODS
    }
    for path in (
        "/bootstrap-dns",
        "/bootstrap-dns?q=x",
        "/index.html",
        "/favicon.ico",
        "/robots.txt?x=1",
        "/robots.txt/",
        "/ROBOTS.TXT",
        "/robots%2etxt",
        "/generate_204?t=1",
        "/generate_204/",
        "/derp/",
        "/derp/probe/",
        "/derp/probe?x",
        "/derp/other",
        "//",
        "//robots.txt",
        "/x//y",
        "/./robots.txt",
        "/x/../robots.txt",
        "/../robots.txt",
        "/%2e%2e/robots.txt",
        "/x/..",
        "/?q=1",
        "/%zz",
        "*",
        "robots.txt",
    ):
        cases[f"GET {path}"] = ask("GET", path)
    close = (("Connection", "close"),)
    cases |= {
        "OPTIONS *": ask("OPTIONS", "*"),
        "BREW /": ask("BREW", "/"),
        "GET http://other.example/robots.txt": ask(
            "GET", "http://other.example/robots.txt"
        ),
        "GET /robots.txt, Connection: close": ask("GET", "/robots.txt", close),
        "GET /robots.txt, HTTP/1.0": ask("GET", "/robots.txt", version="HTTP/1.0"),
        "GET /robots.txt, HTTP/1.0, keep-alive": ask(
            "GET",
            "/robots.txt",
            (("Connection", "keep-alive"),),
            version="HTTP/1.0",
        ),
        "GET /robots.txt, X-Forwarded-For": ask(
            "GET", "/robots.txt", (("X-Forwarded-For", "192.0.2.1"),)
        ),
        "GET /derp/probe, Origin": ask(
            "GET", "/derp/probe", (("Origin", "https://example.com"),)
        ),
        "GET /derp/probe, Connection: close": ask("GET", "/derp/probe", close),
        "CONNECT /derp/probe": ask("CONNECT", "/derp/probe"),
        "CONNECT example.com:443": ask("CONNECT", "example.com:443"),
    }
    return await run_cases(cases)


async def bodies(target: Target) -> dict[str, Json]:
    """Requests with a body, which no page reads."""

    async def two(first: bytes) -> Json:
        """Another request behind it must be answered as what it is."""
        async with open_wire(target) as wire:
            await wire.send(first + head(target, path="/robots.txt"))
            answers: list[Json] = []
            rest = b""
            for _ in range(2):
                reply = await read_reply(wire, first=rest)
                if isinstance(reply, str):
                    return [*answers, reply]
                answers.append([reply.status, len(reply.body)])
                rest = reply.rest
            return answers

    def request(path: str, *headers: tuple[str, str]) -> bytes:
        return head(target, method="POST", path=path, headers=headers)

    length = ("Content-Length", "10")
    chunked = ("Transfer-Encoding", "chunked")
    return await run_cases(
        {
            "none": partial(two, head(target, path="/robots.txt")),
            "of 10 bytes": partial(two, request("/robots.txt", length) + b"x" * 10),
            "in chunks": partial(
                two, request("/robots.txt", chunked) + b"5\r\nhello\r\n0\r\n\r\n"
            ),
            "both kinds of length": partial(
                two,
                request("/robots.txt", chunked, length) + b"5\r\nhello\r\n0\r\n\r\n",
            ),
            "two lengths": partial(
                two,
                request("/robots.txt", length, ("Content-Length", "11")) + b"x" * 10,
            ),
            "bad chunk": partial(two, request("/robots.txt", chunked) + b"zz\r\n"),
            "of 10 bytes, 426": partial(two, request("/derp", length) + b"x" * 10),
            "with Expect": partial(
                two,
                request("/robots.txt", length, ("Expect", "100-continue")) + b"x" * 10,
            ),
            "with another Expect": partial(
                exchange, target, request("/robots.txt", ("Expect", "x"))
            ),
        }
    )


async def challenges(target: Target) -> dict[str, Json]:
    async def challenge(*values: str, port: int | None = None) -> Json:
        request = head(
            target,
            path="/generate_204",
            headers=[("X-Tailscale-Challenge", value) for value in values],
        )
        tls = None if port is None else False
        async with open_wire(target, port=port, tls=tls) as wire:
            await wire.send(request)
            reply = await read_reply(wire)
        if isinstance(reply, str):
            return reply
        return [reply.status, *_response(reply)]

    def _response(reply: Reply) -> list[str]:
        return [
            value for name, value in reply.headers if name == "x-tailscale-response"
        ]

    values = {
        "none": (),
        "empty": ("",),
        "of a client": ("ts_derp1.example.com",),
        "letters, digits and . _ : -": ("azAZ09._:-",),
        "64 characters": ("a" * 64,),
        "65 characters": ("a" * 65,),
        "a space": ("a b",),
        "spaces around": ("  a  ",),
        "a slash": ("a/b",),
        "an exclamation mark": ("a!",),
        "not ASCII": ("a\u00e4",),
        "a semicolon": ("a;b",),
        "two": ("a", "b"),
        "two, the first is bad": ("a b", "b"),
    }
    cases: dict[str, Case] = {
        name: partial(challenge, *value) for name, value in values.items()
    }
    if target.http_port is not None:
        for name in ("none", "of a client", "a space"):
            cases[f"{name}, helper port"] = partial(
                challenge, *values[name], port=target.http_port
            )
    return await run_cases(cases)


async def helper(target: Target) -> dict[str, Json]:
    """The plain port beside TLS (port 80)."""
    ask = partial(_ask, target, port=target.http_port)
    cases: dict[str, Case] = {
        f"{method} {path}": ask(method, path)
        for path in ("/", "/x?y=1", "/generate_204", "/debug/", "/debug")
        for method in _METHODS
    }
    for path in (
        "/derp",
        "/derp/probe",
        "/robots.txt",
        "//x",
        "/x/../y",
        "/debug/varz/",
        "/debugger",
        "/.well-known/acme-challenge/x",
        "/generate_204/",
        "/generate_204?t=1",
        "//generate_204",
        "http://other.example/x",
        "*",
    ):
        cases[f"GET {path}"] = ask("GET", path)
    forwarded = (("X-Forwarded-For", "192.0.2.1"),)
    upgrade = (("Upgrade", "DERP"), ("Connection", "Upgrade"))
    cases |= {
        "GET /, X-Forwarded-For": ask("GET", "/", forwarded),
        "GET /debug/, X-Forwarded-For": ask("GET", "/debug/", forwarded),
        "GET /derp, Upgrade: DERP": ask("GET", "/derp", upgrade),
        "CONNECT example.com:443": ask("CONNECT", "example.com:443"),
        "GET /x, HTTP/1.0": ask("GET", "/x", version="HTTP/1.0"),
        "GET /x, another Host": partial(
            exchange,
            target,
            head(target, path="/x", host="relay.example.com:8080"),
            port=target.http_port,
            tls=False,
        ),
        "no HTTP": partial(
            exchange, target, b"hello\r\n\r\n", port=target.http_port, tls=False
        ),
    }
    return await run_cases(cases)


PAGES = Scenario("pages", pages)
BODIES = Scenario("request bodies", bodies)
CHALLENGES = Scenario("generate_204 challenge", challenges)
HELPER = Scenario("helper port", helper, needs_tls=True, needs_helper=True)
