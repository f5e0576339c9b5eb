"""Which page answers which request.

Everything but an upgrade of ``/derp`` is answered here, as derper answers it
(tailscale ``cmd/derper/derper.go``, ``derp/derpserver/handler.go``). An answer
is made at once, from what is in memory.

API: :class:`Site` with :meth:`Site.answer` for the main port and
:meth:`Site.answer_helper` for the plain port beside a TLS one.

Differences from derper, all on purpose:

- the home page has other words, and a style sheet at a path of its own;
- ``/debug/`` has fewer pages, and its check knows duplicate connections.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from relay.pages.access import DebugAccess
from relay.pages.bootstrap_dns import BootstrapDns
from relay.pages.debug import LINKS, IndexFacts, check_consistency, debug_index
from relay.pages.home import STYLE_PATH, STYLE_SHEET, home_page
from relay.pages.metrics import PROMETHEUS_TYPE, Metrics
from relay.pages.page import TEXT_PLAIN, Request, Response, go_error
from relay.pages.paths import (
    HTML_TYPE,
    clean_path,
    path_segments,
    redirect,
    redirect_to_path,
    split_target,
)
from tailnet.derp.upgrade import UPGRADE_REQUIRED

__all__ = ("Site",)

# tsweb.AddBrowserHeaders
_POLICY: Final = (
    "default-src 'self'; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'; block-all-mixed-content; object-src 'none'"
)
_SAFETY: Final = (
    ("Strict-Transport-Security", "max-age=63072000; includeSubDomains"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)
BROWSER_HEADERS: Final = (("Content-Security-Policy", _POLICY), *_SAFETY)
DEBUG_HEADERS: Final = (
    ("Content-Security-Policy", f"{_POLICY}; style-src 'self' 'unsafe-inline'"),
    *_SAFETY,
)

# handler.go isChallengeChar, and its bound of 64 bytes.
_CHALLENGE: Final = re.compile(r"[a-zA-Z0-9._:-]{1,64}", re.ASCII)

_NOT_FOUND: Final = go_error(404, "404 page not found")
_PROBE: Final = frozenset({("derp", "probe"), ("derp", "latency-check")})


@dataclass(frozen=True, slots=True)
class Site:
    """The pages of one relay.

    Attributes:
        metrics: The numbers to show.
        bootstrap_dns: The names to tell.
        access: Who may see ``/debug/``.
        home: What ``/`` is: ``""``, ``"blank"`` or a URL.
        hostname: What the TLS certificate is for.
        switch_name: Name of the switch in use.
        serves_derp: Whether this relay relays.
        dev: Tell refused visitors how to be let in.
        machine: Tells the host name of this machine.
    """

    metrics: Metrics
    bootstrap_dns: BootstrapDns
    access: DebugAccess = field(default_factory=DebugAccess)
    home: str = ""
    hostname: str = ""
    switch_name: str = ""
    serves_derp: bool = True
    dev: bool = False
    machine: Callable[[], str] = socket.gethostname

    def answer(self, request: Request) -> Response:
        """Answer a request to the main port."""
        if request.method == "CONNECT" and request.tls:
            # ace.go: on TLS this method is for the proxy, whatever the path.
            return go_error(403, "CONNECT not enabled")
        return self._route(request, self._page)

    def answer_helper(self, request: Request) -> Response:
        """Answer a request to the plain port beside TLS (Port80Handler)."""
        return self._route(request, self._helper_page)

    def _route(
        self, request: Request, page: Callable[[Request, tuple[str, ...]], Response]
    ) -> Response:
        path, query = split_target(request)
        if path == "*":
            # server.go serverHandler and ServeMux.ServeHTTP
            if request.method == "OPTIONS":
                return Response(200)
            return Response(400, close=True)
        if request.method != "CONNECT":
            if not path.startswith("/"):
                return _bad_request()
            if (clean := clean_path(path)) != path:
                return redirect_to_path(request, clean, query)
        elif not path.startswith("/"):
            return _NOT_FOUND  # host:port, which has no path
        segments = path_segments(path)
        if segments is None:
            return _bad_request()
        return page(request, segments)

    def _helper_page(self, request: Request, segments: tuple[str, ...]) -> Response:
        if segments == ("generate_204",):
            return _generate_204(request)
        if request.target.startswith("/debug"):
            return self._page(request, segments)
        if request.method not in ("GET", "HEAD"):
            return go_error(400, "Use HTTPS")
        target = request.target
        if target == "/" and self.access.allows(request):
            target = "/debug/"
        return redirect(request, f"https://{request.header('host')}{target}", 302)

    def _page(self, request: Request, segments: tuple[str, ...]) -> Response:
        if segments in _PROBE:
            if request.method in ("GET", "HEAD"):
                # Browsers probe too, from pages of other hosts.
                return Response(200, (("Access-Control-Allow-Origin", "*"),))
            return go_error(405, "bogus probe method")
        match segments:
            case ("derp",) if self.serves_derp:
                return go_error(426, UPGRADE_REQUIRED)
            case ("derp",):
                return go_error(404, "derp server disabled")
            case ("generate_204",):
                return _generate_204(request)
            case ("bootstrap-dns",):
                return self.bootstrap_dns.answer(request.query, BROWSER_HEADERS)
            case ("robots.txt",):
                return Response(
                    200,
                    (*BROWSER_HEADERS, TEXT_PLAIN),
                    b"User-agent: *\nDisallow: /\n",
                )
            case ("debug",):
                return redirect_to_path(request, "/debug/", request.query)
            case ("debug", name):
                return self._debug(request, name)
            case ("debug", *_):
                return self._debug(request, None)
        if request.target == STYLE_PATH:
            return Response(
                200,
                (
                    *BROWSER_HEADERS,
                    ("Cache-Control", "public, max-age=31536000, immutable"),
                    ("Content-Type", "text/css; charset=utf-8"),
                ),
                STYLE_SHEET.encode(),
            )
        return self._home(request)

    def _home(self, request: Request) -> Response:
        if self.home not in ("", "blank"):
            return redirect(request, self.home, 302, BROWSER_HEADERS)
        body = b""
        if not self.home:
            body = home_page(
                is_disabled=not self.serves_derp,
                allows_debug=self.access.allows(request),
            )
        return Response(200, (*BROWSER_HEADERS, HTML_TYPE), body)

    def _debug(self, request: Request, name: str | None) -> Response:
        if not self.access.allows(request):
            text = "debug access denied"
            if self.dev and name in LINKS and request.remote is not None:
                text += f"; to permit access, set TS_ALLOW_DEBUG_IP={request.remote[0]}"
            return go_error(403, text)
        match name:
            case "":
                facts = IndexFacts(
                    uptime=self.metrics.uptime,
                    version=self.metrics.version,
                    machine=self.machine(),
                    hostname=self.hostname,
                    switch=self.switch_name,
                )
                return Response(200, (*BROWSER_HEADERS, HTML_TYPE), debug_index(facts))
            case "vars":
                return Response(
                    200,
                    (
                        *DEBUG_HEADERS,
                        ("Content-Type", "application/json; charset=utf-8"),
                    ),
                    self.metrics.to_json(),
                )
            case "varz":
                return Response(
                    200, (*DEBUG_HEADERS, PROMETHEUS_TYPE), self.metrics.to_prometheus()
                )
            case "check":
                problems = check_consistency(self.metrics.switch())
                if problems:
                    return Response(
                        500,
                        (*DEBUG_HEADERS, TEXT_PLAIN),
                        f"{', '.join(problems)}\n".encode(),
                    )
                return Response(
                    200,
                    (*DEBUG_HEADERS, TEXT_PLAIN),
                    b"derp.Server ConsistencyCheck okay",
                )
        return _NOT_FOUND


def _generate_204(request: Request) -> Response:
    """The captive portal check (handler.go ServeNoContent)."""
    headers = [
        (
            "Cache-Control",
            "no-cache, no-store, must-revalidate, no-transform, max-age=0",
        )
    ]
    challenge = request.header("x-tailscale-challenge")
    if _CHALLENGE.fullmatch(challenge):
        headers.append(("X-Tailscale-Response", f"response {challenge}"))
    return Response(204, tuple(headers))


def _bad_request() -> Response:
    """What Go's server says to a target that is no URI."""
    return Response(400, (TEXT_PLAIN,), b"400 Bad Request", close=True)
