from __future__ import annotations

import json

from tests.cli.api_server import TOKEN, serving_api
from tests.cli.program import Program

PATH = "/api/v2/debug/coordinator"
AGENT = "11111111-1111-4111-8111-111111111111"
CLIENT = "22222222-2222-4222-8222-222222222222"

VIEW = {
    "version": 1,
    "at": "2026-01-01T00:00:00Z",
    "policy": {"disable_direct_connections": True, "derp_force_websockets": False},
    "peers": [
        {
            "id": AGENT,
            "name": "alice-dev-main",
            "kind": "agent",
            "status": "ok",
            "since": "2026-01-01T00:00:00Z",
            "node": {"preferred_derp": 999, "preferred_derp_name": "coder"},
            "relayed_because": [],
        },
        {
            "id": CLIENT,
            "name": "client",
            "kind": "client",
            "status": "lost",
            "since": None,
            "node": None,
            "relayed_because": [{"code": "lost", "text": "lost its connection"}],
        },
    ],
    "tunnels": [
        {
            "source": CLIENT,
            "destination": AGENT,
            "relayed_because": [
                {"code": "a", "text": "one", "peer": None},
                {"code": "b", "text": "two", "peer": CLIENT},
            ],
        }
    ],
}


def test_coordinator(program: Program) -> None:
    with serving_api({PATH: json.dumps(VIEW)}) as server:
        text = program.text("debug", "coordinator", *server.options)
        assert program.json("debug", "coordinator", *server.options) == VIEW
    assert server.asked == [(PATH, TOKEN, "application/json")] * 2
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "direct paths off",
        "raw DERP allowed",
        "peers 2",
        "tunnels 1",
        "",
        "PEER NAME KIND STATUS SINCE HOME RELAYED BECAUSE",
        f"{AGENT} alice-dev-main agent ok 2026-01-01T00:00:00Z coder -",
        f"{CLIENT} client client lost - - lost its connection",
        "",
        "FROM TO RELAYED BECAUSE",
        "client alice-dev-main one; two",
    ]


def test_a_server_with_another_view(program: Program) -> None:
    """What is not there is a dash, and nothing falls over it."""
    for view in ("{}", "[]", '{"peers":[7,{}],"tunnels":[{"source":"x"}],"policy":1}'):
        with serving_api({PATH: view}) as server:
            text = program.text("debug", "coordinator", *server.options)
        assert text.startswith("direct paths  -\nraw DERP      -\n")


def test_coder_shows_it_to_browsers_only(program: Program) -> None:
    with serving_api({PATH: "<html>"}) as server:
        server.content_type = "text/html"
        assert program.error("debug", "coordinator", *server.options, status=1) == (
            "tailnet: the server shows its coordinator to browsers only"
        )


def test_who_may_not(program: Program) -> None:
    with serving_api({PATH: '{"message":"Forbidden."}'}) as server:
        server.status = 403
        assert program.error("debug", "coordinator", *server.options, status=1) == (
            "tailnet: Forbidden. (status 403)"
        )
