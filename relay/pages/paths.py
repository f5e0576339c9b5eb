"""Paths and redirects as Go's ``http.ServeMux`` makes them.

The mux (net/http server.go, Go 1.26) cleans the path of each request and
redirects to the clean one; segments are compared percent-decoded, so an
encoded slash is part of its segment. Whoever probes a relay sees these rules,
so they are kept.
"""

from __future__ import annotations

import html
import posixpath
import urllib.parse

from relay.pages.page import Request, Response

__all__ = (
    "HTML_TYPE",
    "clean_path",
    "path_segments",
    "query_value",
    "redirect",
    "redirect_to_path",
    "split_target",
)

HTML_TYPE = ("Content-Type", "text/html; charset=utf-8")

_REASONS = {302: "Found", 307: "Temporary Redirect"}


def split_target(request: Request) -> tuple[str, str]:
    """The path of a request as sent, still percent-encoded, and its query."""
    path, _, query = request.target.partition("?")
    return path, query


def query_value(query: str, name: str) -> str:
    """The first value of a name in a query, or the empty string."""
    try:
        return urllib.parse.parse_qs(query, max_num_fields=100).get(name, [""])[0]
    except ValueError:  # more fields than that: nothing that we know of
        return ""


def clean_path(path: str) -> str:
    """The canonical form of a path (net/http ``cleanPath``).

    Args:
        path: Still percent-encoded: ``%2e%2e`` is a name like any other.
    """
    # normpath keeps two leading slashes, as POSIX wants it.
    cleaned = posixpath.normpath("/" + path.lstrip("/"))
    if path.endswith("/") and cleaned != "/":
        return cleaned + "/"
    return cleaned


def path_segments(path: str) -> tuple[str, ...] | None:
    """What stands between the slashes of a clean path, percent-decoded.

    Returns:
        None if an escape is none: Go refuses such a request.
    """
    segments = []
    for segment in path.split("/")[1:]:
        for escape in segment.split("%")[1:]:
            digits = escape[:2]
            if len(digits) != 2 or not all(c in _HEX for c in digits):
                return None
        segments.append(urllib.parse.unquote(segment, "latin-1"))
    return tuple(segments)


_HEX = frozenset("0123456789abcdefABCDEF")


def redirect(
    request: Request,
    location: str,
    status: int,
    headers: tuple[tuple[str, str], ...] = (),
) -> Response:
    """A redirect as Go's ``http.Redirect`` writes it.

    Args:
        request: GET gets a link in the body, HEAD its type, others neither.
        location: A path, or a whole URL.
        status: 302 or 307.
        headers: More of them.
    """
    location = "".join(c if c < "\x80" else f"%{ord(c):x}" for c in location)
    body = b""
    if request.method in ("GET", "HEAD"):
        headers += (HTML_TYPE,)
    if request.method == "GET":
        # Go's name for the quote is &#34;, Python's is &quot;.
        link = (
            html.escape(location).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
        )
        body = f'<a href="{link}">{_REASONS[status]}</a>.\n\n'.encode()
    return Response(status, (*headers, ("Location", location)), body)


def redirect_to_path(request: Request, path: str, query: str) -> Response:
    """A redirect of the mux to a path that it likes better.

    Args:
        request: What is redirected.
        path: Where to; encoded once more, escapes in it included, as Go does.
        query: Kept as it is.
    """
    location = urllib.parse.quote(path, safe="$&+,/:;=@~", encoding="latin-1")
    if query:
        location += "?" + query
    return redirect(request, location, 307)
