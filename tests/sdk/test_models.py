from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from tailnet.errors import RemoteProtocolError
from tailnet.sdk.models import (
    AgentInfo,
    BuildInfo,
    UserInfo,
    decode_api_error,
    decode_connection_info,
    decode_model,
    decode_workspace,
)

ID = UUID("11111111-1111-4111-8111-111111111111")
JSON = "application/json; charset=utf-8"


def test_connection_info() -> None:
    info = decode_connection_info(
        b'{"derp_map":{"Regions":{"999":{"EmbeddedRelay":true,"RegionID":999,'
        b'"RegionCode":"coder","RegionName":"x","Nodes":[{"Name":"999b",'
        b'"RegionID":999,"HostName":"coder.test","STUNPort":-1,"DERPPort":443}]}}},'
        b'"derp_force_websockets":true,"disable_direct_connections":true,'
        b'"hostname_suffix":"coder","of_the_future":1}'
    )
    region = info.derp_map.region(999)
    assert region.embedded_relay
    assert region.nodes is not None
    assert region.nodes[0].stun_port == -1
    assert info.derp_force_websockets
    assert info.disable_direct_connections
    assert info.hostname_suffix == "coder"
    assert not decode_connection_info(b'{"derp_map":{}}').derp_force_websockets


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"derp_map":7}', b'{"derp_map":{},"hostname_suffix":1}',
     b'{"derp_map":{"Regions":{"a":{}}}}', b"\xff", b'{"derp_map":' + b"[" * 9999],
)  # fmt: skip
def test_connection_info_that_is_none(text: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="answer is not right"):
        decode_connection_info(text)


def test_build_info_and_user() -> None:
    assert decode_model(b'{"version":"v2.24.0","telemetry":true}', BuildInfo) == (
        BuildInfo(version="v2.24.0")
    )
    text = b'{"id":"%b","username":"me"}' % str(ID).encode()
    assert decode_model(text, UserInfo) == UserInfo(ID, "me")
    with pytest.raises(RemoteProtocolError):
        decode_model(b'{"id":"nonsense","username":"me"}', UserInfo)


def test_workspace() -> None:
    workspace = decode_workspace(
        b'{"id":"%(id)b","name":"dev","owner_name":"me","latest_build":'
        b'{"status":"running","transition":"start","job":{},"resources":'
        b'[{"agents":null},{"agents":[{"id":"%(id)b","name":"main",'
        b'"parent_id":null,"lifecycle_state":"ready"}]}]}}' % {b"id": str(ID).encode()}
    )
    assert workspace.agents == (AgentInfo(ID, name="main", lifecycle_state="ready"),)
    assert (workspace.name, workspace.status) == ("dev", "running")
    bare = decode_workspace(b'{"id":"%b","latest_build":{}}' % str(ID).encode())
    assert (bare.agents, bare.transition) == ((), "")


def test_api_error() -> None:
    error = decode_api_error(
        401,
        JSON,
        b'{"message":"Invalid resume token","detail":"two\\nlines","validations":'
        b'[{"field":"resume_token","detail":"Invalid"}]}',
    )
    assert (error.status, error.message) == (401, "Invalid resume token")
    assert error.validations == (("resume_token", "Invalid"),)
    assert error.rejects("resume_token")
    assert not error.rejects("version")
    assert str(error) == (
        "Invalid resume token; two lines; resume_token: Invalid (status 401)"
    )
    plain = decode_api_error(404, "application/json", b'{"message":"No."}')
    assert (plain.detail, plain.validations) == ("", ())


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/html", b"<h1>Bad\nGateway</h1>", "(text/html); <h1>Bad Gateway</h1>"),
        ("", b"", "(nothing)"),
        (JSON, b"not JSON", f"({JSON}); not JSON"),
        (JSON, b'{"message":7}', f'({JSON}); {{"message":7}}'),
    ],
)
def test_whatever_answers(content_type: str, body: bytes, text: str) -> None:
    error = decode_api_error(502, content_type, body)
    assert str(error) == f"unexpected non-JSON response {text} (status 502)"


@given(body=st.binary(max_size=60), json=st.booleans())
def test_any_refusal_is_an_error(body: bytes, json: bool) -> None:
    error = decode_api_error(500, JSON if json else "x", body)
    assert "\n" not in str(error)
