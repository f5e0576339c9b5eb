from __future__ import annotations

import json

from tailnet.derp.derpmap import decode_derp_map
from tests.cli.api_server import TOKEN, serving_api
from tests.cli.program import Program

PATH = "/api/v2/workspaceagents/connection"

EMBEDDED = {
    "EmbeddedRelay": True,
    "RegionID": 999,
    "RegionCode": "coder",
    "RegionName": "Coder Embedded Relay",
    "Nodes": [
        {
            "Name": "999b",
            "RegionID": 999,
            "HostName": "access-url.test",
            "STUNPort": -1,
            "DERPPort": 443,
        }
    ],
}
OTHER = {
    "EmbeddedRelay": False,
    "RegionID": 1,
    "RegionCode": "nyc",
    "RegionName": "New York\x1b[31m",
    "NoMeasureNoHome": True,
    "Nodes": [
        {
            "Name": "1a",
            "RegionID": 1,
            "HostName": "derp.test",
            "CertName": "other.test",
            "IPv4": "192.0.2.1",
            "IPv6": "none",
            "InsecureForTests": True,
        },
        {
            "Name": "1s",
            "RegionID": 1,
            "HostName": "stun.test",
            "STUNOnly": True,
            "STUNPort": 19302,
        },
    ],
}
EMPTY = {
    "EmbeddedRelay": False,
    "RegionID": 2,
    "RegionCode": "",
    "RegionName": "",
    "Nodes": [],
}
MAP = {"Regions": {"1": OTHER, "2": EMPTY, "3": None, "999": EMBEDDED}}
NOTES = (
    "never home, certificate not checked, certificate: other.test, "
    "addresses: 192.0.2.1 none"
)
ANSWER = {PATH: json.dumps({"derp_map": MAP})}


def test_text(program: Program) -> None:
    with serving_api(ANSWER) as server:
        text = program.text("derp-map", *server.options)
        port = server.url.rpartition(":")[2]
    assert server.asked == [(PATH, TOKEN, "*/*")]
    rows = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["REGION", "CODE", "NAME", "NODE", "HOST", "DERP", "STUN", "NOTES"],
        ["1", "nyc", "New York\\x1b[31m", "1a", "derp.test", "443", "3478",
         NOTES],
        ["1", "nyc", "New York\\x1b[31m", "1s", "stun.test", "-", "19302",
         "never home"],
        ["2", "-", "-", "-", "-"],
        ["999", "coder", "Coder Embedded Relay", "999b", "127.0.0.1", port, "-",
         "embedded, plain HTTP"],
    ]  # fmt: skip


def test_json_is_a_map(program: Program) -> None:
    with serving_api(ANSWER) as server:
        found = program.json("derp-map", *server.options)
        as_served = program.json("derp-map", "--as-served", *server.options)
    assert as_served == MAP
    node = found["Regions"]["999"]["Nodes"][0]
    assert node["HostName"] == "127.0.0.1"
    assert node["ForceHTTP"] is True
    decode_derp_map(json.dumps(found).encode())


def test_a_server_that_refuses_or_is_not_there(program: Program) -> None:
    with serving_api({}) as server:
        assert program.error("derp-map", *server.options, status=1) == (
            "tailnet: Route not found. (status 404)"
        )
    error = program.error("derp-map", *server.options, status=1)
    assert error.startswith(f"tailnet: {server.url}: ")
    assert "which server?" in program.error("derp-map", status=2)
