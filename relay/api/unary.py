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

from tailnet.control.drpc import UNIMPLEMENTED
from tailnet.control.server import Handler, ServerCall, unary as rpc_unary
from tailnet.errors import RpcError, StoreError, StoreUnavailableError

__all__ = ("MAX_REQUEST_LEN", "decode_request", "refuse", "store_refusal", "unary")

log = structlog.get_logger("relay.api")

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

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

    async def answer(call: ServerCall, data: bytes) -> bytes:
        try:
            response = await serve(decode_request(kind, data, max_len=max_len))
        except StoreError as exc:
            raise store_refusal(call.method, exc) from exc
        return response.SerializeToString()

    return rpc_unary(answer)


def store_refusal(method: str, exc: StoreError) -> RpcError:
    """What the caller of a method is told of the store's troubles."""
    if isinstance(exc, StoreUnavailableError):
        log.error("the store does not answer", method=method, reason=str(exc))
        return RpcError("database not reachable")
    return RpcError(str(exc))


def decode_request(
    kind: type[_Request], data: bytes, *, max_len: int = MAX_REQUEST_LEN
) -> _Request:
    """The request in a message.

    Raises:
        RpcError: It is too long, or no message of this kind.
    """
    name = kind.DESCRIPTOR.name
    if len(data) > max_len:
        raise RpcError(f"{name} of {len(data)} bytes, the limit is {max_len}")
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise RpcError(f"cannot parse {name}: {exc}") from exc


async def refuse(call: ServerCall) -> None:
    """The handler of a method that this server does not have."""
    raise RpcError("Unimplemented", UNIMPLEMENTED)
