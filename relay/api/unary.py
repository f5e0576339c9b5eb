"""Unary calls: one message in, one message out, and what may go wrong between.

A service writes its methods as functions of messages; :func:`unary` makes a
handler for a session of them. Errors that a method may raise, and what the
caller is told:

- :exc:`tailnet.errors.StoreError`: its text. A report that breaks a rule is an
  InvalidRecordError; an agent that was deleted is a NotFoundError.
- :exc:`tailnet.errors.RpcError`: itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
from google.protobuf.message import DecodeError, Message

from tailnet.control.session import Handler, ServerCall
from tailnet.errors import RpcError, StoreError, StoreUnavailableError

__all__ = ("MAX_REQUEST_LEN", "UNIMPLEMENTED", "decode_request", "refuse", "unary")

log = structlog.get_logger("relay.api")

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

# storj.io/drpc drpcerr.Unimplemented. The one code that Coder's peers read.
UNIMPLEMENTED: Final = 12

# Ours, in bytes. A session takes 4 MiB, which only logs need.
MAX_REQUEST_LEN: Final = 256 << 10


def unary(
    kind: type[_Request],
    serve: Callable[[_Request], Awaitable[_Response]],
    *,
    max_len: int = MAX_REQUEST_LEN,
) -> Handler:
    """Make a handler of a function of messages.

    Args:
        kind: Class of the request.
        serve: Answers a request.
        max_len: Bytes that a request may have.
    """

    async def handle(call: ServerCall) -> None:
        request = await decode_request(call, kind, max_len=max_len)
        if request is None:
            return  # gone before it asked
        try:
            response = await serve(request)
        except StoreUnavailableError as exc:
            log.error("store unavailable", method=call.method, reason=str(exc))
            raise RpcError("the database is not reachable") from exc
        except StoreError as exc:
            log.info("call refused", method=call.method, reason=str(exc))
            raise RpcError(str(exc)) from exc
        await call.send(response.SerializeToString())

    return handle


async def decode_request(
    call: ServerCall, kind: type[_Request], *, max_len: int = MAX_REQUEST_LEN
) -> _Request | None:
    """The first message of a call, or None if there is none.

    Raises:
        RpcError: It is too long, or no message of this kind.
    """
    data = await call.receive()
    if data is None:
        return None
    name = kind.DESCRIPTOR.name
    if len(data) > max_len:
        raise RpcError(f"{name} of {len(data)} bytes, the limit is {max_len}")
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise RpcError(f"cannot parse {name}: {exc}") from exc


async def refuse(call: ServerCall) -> None:
    """The handler of a method that this server does not have."""
    raise RpcError("Unimplemented", code=UNIMPLEMENTED)
