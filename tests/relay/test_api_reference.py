"""The reference of the API has a row for every endpoint and method there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.api.debug_view import VIEW_VERSION
from relay.api.derp_verify import VERIFY_ROUTES
from relay.api.router import Auth, Route
from relay.server import API_ROUTES
from tailnet.control.proto import agent_pb2, tailnet_pb2
from tests.modules import ROOT

REFERENCE = Path(ROOT / "docs/reference/api.md").read_text("utf-8")

# How the reference calls them.
WHO = {
    Auth.NONE: "anybody",
    Auth.USER: "user",
    Auth.AGENT: "agent",
    Auth.ADMIN: "admin",
}


def rows() -> dict[str, str]:
    """What the tables say: who may ask, by method and path."""
    found = {}
    for line in REFERENCE.splitlines():
        match = re.match(r"\| `(GET|POST) (/[^` ]*)`(.*?) \| ([^|]*) \|", line)
        if match is None:
            continue
        method, path, more, who = match.groups()
        found[f"{method} {path}"] = who
        for other in re.findall(r"`\.\.\.(/[^`]*)`", more):
            found[f"{method} {path.rpartition('/')[0]}{other}"] = who
    return found


@pytest.mark.parametrize(
    "route", API_ROUTES, ids=lambda route: f"{route.method} {route.pattern}"
)
def test_endpoint_has_its_row(route: Route) -> None:
    who = rows()[f"{route.method} {route.pattern}"]
    if route in VERIFY_ROUTES:
        assert who.startswith("bearer token")
    else:
        assert who == WHO[route.auth]


def test_no_row_is_of_an_endpoint_that_is_not_there() -> None:
    there = {f"{route.method} {route.pattern}" for route in API_ROUTES}
    assert set(rows()) - there == {"GET /derp", "GET /derp/latency-check"}


@pytest.mark.parametrize(
    "service",
    [
        agent_pb2.DESCRIPTOR.services_by_name["Agent"],
        tailnet_pb2.DESCRIPTOR.services_by_name["Tailnet"],
    ],
    ids=lambda service: str(service.name),
)
def test_methods_are_there(service: object) -> None:
    methods = getattr(service, "methods")  # noqa: B009
    assert methods
    for method in methods:
        assert re.search(rf"^\| .*\b{method.name}\b", REFERENCE, re.MULTILINE), method


def test_version_of_the_json() -> None:
    assert f"| `version` | {VIEW_VERSION} |" in REFERENCE
