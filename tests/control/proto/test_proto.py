"""The messages, against encodings that Coder's own code made."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tailnet.control.proto import agent_pb2, tailnet_pb2

DATA = Path(__file__).parents[2] / "data" / "coder"
VECTORS: dict[str, Any] = json.loads((DATA / "vectors.json").read_text())
SESSIONS = ("block-endpoints", "direct", "fallback-ws", "force-ws", "relay")

MESSAGE_VECTORS = [name for name, value in VECTORS.items() if isinstance(value, dict)]

AGENT_ID = bytes.fromhex(VECTORS["uuid"].replace("-", ""))


def as_json(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


# -- vectors ----------------------------------------------------------------


@pytest.mark.parametrize("name", MESSAGE_VECTORS)
def test_vector(name: str) -> None:
    vector = VECTORS[name]
    message_class = getattr(tailnet_pb2, name.split(".")[0])
    message = message_class.FromString(bytes.fromhex(vector["hex"]))
    assert as_json(message) == vector["json"]
    assert message.SerializeToString().hex() == vector["hex"]
    again = json_format.ParseDict(vector["json"], message_class())
    assert again == message


def test_vectors_are_there() -> None:
    assert len(MESSAGE_VECTORS) == 7


# -- recorded sessions ------------------------------------------------------


@cache
def recorded(session: str) -> list[dict[str, Any]]:
    """The dRPC messages of a session."""
    lines = (DATA / f"{session}.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return [e for e in events if e["ev"] == "drpc" and e["kind"] == "Message"]


def method(name: str) -> MethodDescriptor:
    """A method by its dRPC name, ``/package.Service/Method``."""
    _, service, short = name.split("/")
    pool = descriptor_pool.Default()
    found = pool.FindServiceByName(service).methods_by_name[short]
    assert isinstance(found, MethodDescriptor)
    return found


@pytest.mark.parametrize("session", SESSIONS)
def test_recorded_messages(session: str) -> None:
    """Read, they are what was recorded as JSON; nothing in them is unknown."""
    for event in recorded(session):
        found = method(event["rpc"])
        side = found.input_type if event["dir"] == "c2s" else found.output_type
        raw = bytes.fromhex(event["hex"])
        message = GetMessageClass(side).FromString(raw)
        assert as_json(message) == event["json"]
        # Of the same length, for maps have no order; a field that we do not
        # know would still be there, but not in the JSON above.
        assert len(message.SerializeToString()) == len(raw)


def test_recorded_messages_are_of_many_kinds() -> None:
    kinds = {(e["rpc"], e["dir"]) for s in SESSIONS for e in recorded(s)}
    assert len(kinds) >= 20


# -- facts that bite --------------------------------------------------------


def test_home_params_are_on_the_wire_when_empty() -> None:
    derp_map = tailnet_pb2.DERPMap(home_params={})
    assert derp_map.SerializeToString() == bytes.fromhex("0a00")


def test_a_port_of_minus_one_has_ten_bytes() -> None:
    node = tailnet_pb2.DERPMap.Region.Node(stun_port=-1)
    assert node.SerializeToString().hex() == "38" + "ff" * 9 + "01"


def test_metadata_is_field_two() -> None:
    request = agent_pb2.BatchUpdateMetadataRequest(metadata=[{"key": "a"}])
    assert request.SerializeToString().hex() == "1203" + "0a0161"


def test_a_parent_may_be_absent_or_empty() -> None:
    assert not agent_pb2.Manifest().HasField("parent_id")
    manifest = agent_pb2.Manifest(parent_id=b"")
    assert manifest.SerializeToString().hex() == "9201" + "00"


def test_the_first_stats_request_is_empty() -> None:
    request = agent_pb2.UpdateStatsRequest.FromString(b"")
    assert not request.HasField("stats")


def test_ready_for_handshake_by_hand() -> None:
    request = tailnet_pb2.CoordinateRequest(ready_for_handshake=[{"id": AGENT_ID}])
    assert request.SerializeToString().hex() == "2a120a10" + AGENT_ID.hex()


def test_unknown_fields_are_no_error() -> None:
    # Field 99, a varint.
    message = tailnet_pb2.Node.FromString(bytes.fromhex("0801" + "980601"))
    assert message.id == 1


def test_streaming_of_the_methods() -> None:
    methods = tailnet_pb2.DESCRIPTOR.services_by_name["Tailnet"].methods_by_name
    shapes = {
        name: (found.client_streaming, found.server_streaming)
        for name, found in methods.items()
    }
    assert shapes == {
        "PostTelemetry": (False, False),
        "StreamDERPMaps": (False, True),
        "RefreshResumeToken": (False, False),
        "Coordinate": (True, True),
        "WorkspaceUpdates": (False, True),
    }


def test_the_agent_service_is_complete() -> None:
    """As of API 2.11: facts by name, so that a lost method shows."""
    methods = agent_pb2.DESCRIPTOR.services_by_name["Agent"].methods
    assert [found.name for found in methods] == [
        "GetManifest",
        "GetServiceBanner",
        "UpdateStats",
        "UpdateLifecycle",
        "BatchUpdateAppHealths",
        "UpdateStartup",
        "BatchUpdateMetadata",
        "BatchCreateLogs",
        "GetAnnouncementBanners",
        "ScriptCompleted",
        "GetResourcesMonitoringConfiguration",
        "PushResourcesMonitoringUsage",
        "ReportConnection",
        "CreateSubAgent",
        "DeleteSubAgent",
        "ListSubAgents",
        "ReportBoundaryLogs",
        "UpdateAppStatus",
        "PushContextState",
    ]


def test_json_of_bytes_is_base64() -> None:
    tunnel = tailnet_pb2.CoordinateRequest.Tunnel(id=AGENT_ID)
    assert as_json(tunnel) == {"id": base64.b64encode(AGENT_ID).decode()}


def test_import_gives_no_warning() -> None:
    code = "from tailnet.control.proto import agent_pb2, tailnet_pb2"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
