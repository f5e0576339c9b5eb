from __future__ import annotations

import pytest

from relay.api.unary import MAX_REQUEST_LEN, decode_request, refuse, unary
from tailnet.control.proto import agent_pb2 as pb
from tailnet.errors import (
    InvalidRecordError,
    NotFoundError,
    RpcError,
    StoreUnavailableError,
)
from tests.relay.api.rig import FakeCall, ask, refusal, run_call


async def echo(request: pb.Startup) -> pb.Startup:
    return request


async def test_one_message_in_one_out() -> None:
    request = pb.Startup(version="v1.0.0")
    assert await ask(unary(pb.Startup, echo), request, pb.Startup) == request


@pytest.mark.parametrize(
    ("exc", "text", "code"),
    [
        (InvalidRecordError("field: wrong"), "field: wrong", 0),
        (NotFoundError("there is no agent x"), "there is no agent x", 0),
        # Where the database is, is nobody's business.
        (StoreUnavailableError("/var/lib/x.db: locked"), "database not reachable", 0),
        (RpcError("as it is", 12), "as it is", 12),
    ],
)
async def test_what_the_caller_is_told(exc: Exception, text: str, code: int) -> None:
    async def fail(request: pb.Startup) -> pb.Startup:
        raise exc

    error = await refusal(unary(pb.Startup, fail), b"")
    assert (error.text, error.code) == (text, code)


async def test_bugs_are_not_hidden() -> None:
    async def fail(request: pb.Startup) -> pb.Startup:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_call(unary(pb.Startup, fail), FakeCall("/x/Y", b""))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff", "cannot parse Startup"),
        (b"\x0a\x05ab", "cannot parse Startup"),  # half a message
        (b"\x0a\x01\xff", "cannot parse Startup"),  # no UTF-8
        (
            bytes(MAX_REQUEST_LEN + 1),
            f"Startup of {MAX_REQUEST_LEN + 1} bytes, the limit is {MAX_REQUEST_LEN}",
        ),
    ],
)
def test_bad_requests(data: bytes, text: str) -> None:
    with pytest.raises(RpcError, match=text):
        decode_request(pb.Startup, data)


def test_unknown_fields_are_tolerated() -> None:
    data = pb.Startup(version="v1").SerializeToString() + b"\xfa\x7f\x01x"
    assert decode_request(pb.Startup, data).version == "v1"


async def test_a_client_that_leaves_before_it_asks() -> None:
    call = FakeCall("/x/Y")
    with pytest.raises(RpcError, match="EOF"):
        await run_call(unary(pb.Startup, echo), call)
    assert call.sent == []


async def test_refuse() -> None:
    error = await refusal(refuse, b"")
    assert (error.text, error.code) == ("Unimplemented", 12)
