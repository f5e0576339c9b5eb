"""Serving calls: the server's end of a control session, on trio.

dRPC as Go's ``drpcmux`` and ``drpcserver`` serve it, one call to a stream of
yamux. A call has a task from its Invoke to the end of its handler; a stream
without an Invoke has none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import structlog
import trio

from tailnet.control.calls import Call
from tailnet.control.drpc import UNIMPLEMENTED
from tailnet.control.drpc_stream import CallState, Invoked
from tailnet.control.link import Link
from tailnet.control.session import Session
from tailnet.control.yamux import MAX_STREAMS, Role, YamuxStream
from tailnet.errors import ProtocolError, RpcError

__all__ = ("CALL_GRACE", "Handler", "ServerCall", "serve_rpc", "unary")

log = structlog.get_logger("tailnet.control")

# Seconds that a handler has to notice that its client is gone.
CALL_GRACE: Final = 5.0

# drpcmux, for what no handler has; the code is for clients that look at that.
_UNKNOWN_RPC: Final = 'protocol error: unknown rpc: "{}"'

# What Go's server answers when a handler panics.
_PANIC: Final = "panic serving dRPC request"


class ServerCall(Call):
    """A call, for its handler.

    Any task may use ``send_nowait`` and ``backlog``; the rest is for one task.
    When the client ends the call, or is gone, ``receive`` gives what came
    before and then None. A handler that has all it could receive and waits
    for something else is cancelled at once; any other after CALL_GRACE.

    Attributes:
        method: The name that was called, ``/package.Service/Method``.
        metadata: That came with it.
    """

    __slots__ = ("_scope", "_start", "metadata", "method")

    def __init__(
        self,
        session: Session,
        stream: YamuxStream,
        start: Callable[[ServerCall], None],
    ) -> None:
        super().__init__(session, stream, server=True)
        self.method = ""
        self.metadata: Mapping[str, str] = {}
        self._start = start
        self._scope: trio.CancelScope | None = None

    async def receive(self) -> bytes | None:
        """The client's next message; None when there is none any more."""
        return await self._next_message()

    def reply(self, message: bytes) -> None:
        """Send the one and last message: what a unary call is answered with.

        Raises:
            LocalProtocolError: The message is longer than 4 MiB.
        """
        if self._sendable:
            wire = self._drpc.encode_message(message)
            self._finish_sending(wire + self._drpc.encode_close_send())

    def close(self) -> None:
        """End the call both ways (Close). The handler should then return."""
        self._finish_sending(self._drpc.encode_close())

    def describe(self) -> dict[str, object]:
        """What a log line should say of it."""
        return {"method": self.method, "stream": self._stream.id}

    async def run(self, handler: Handler) -> None:
        """Run the handler, and answer as it ended."""
        self._scope = trio.CancelScope()
        error: RpcError | None = None
        try:
            with self._scope:
                if self.ended:
                    self._on_ended()
                await handler(self)
        except Exception as exc:
            error = self._judge(exc)
        self.finish(error)

    def _judge(self, exc: Exception) -> RpcError | None:
        """What the client is told of an exception."""
        while isinstance(exc, ExceptionGroup) and len(exc.exceptions) == 1:
            exc = exc.exceptions[0]
        if isinstance(exc, RpcError):
            return exc
        if self.ended and isinstance(exc, trio.BrokenResourceError):
            return None  # from ``send``
        if isinstance(exc, ProtocolError):
            log.info("rpc call failed", reason=str(exc), **self.describe())
            return RpcError(str(exc))
        log.error("rpc handler failed", exc_info=exc, **self.describe())
        return RpcError(_PANIC)

    def finish(self, error: RpcError | None = None) -> None:
        """Say the last word, and wait for the client to close the stream."""
        if error is not None:
            last = self._drpc.encode_error(error)
        elif self._drpc.state is CallState.OPEN:
            # The client may still be sending; Coder's handlers of such calls
            # close them.
            last = self._drpc.encode_close()
        else:
            last = self._drpc.encode_close_send()
        self._finish_sending(last)
        self._discard_input()
        if self._eof:
            self._session.close_stream(self._stream)
        else:
            self._session.expect_close(self._stream)
        self._session.flush_control()

    def _on_invoked(self, event: Invoked) -> None:
        self.method, self.metadata = event.method, event.metadata
        self._start(self)

    def _on_ended(self) -> None:
        if not self.method:
            # Nobody to be told.
            self._discard_input()
            self._session.close_stream(self._stream)
            return
        if self._scope is None:
            return
        if self._all_received and not self._messages:
            self._scope.cancel()
        else:
            self._scope.deadline = trio.current_time() + CALL_GRACE


Handler: TypeAlias = Callable[[ServerCall], Awaitable[None]]


def unary(function: Callable[[ServerCall, bytes], Awaitable[bytes]]) -> Handler:
    """A handler of calls with one request and one answer.

    Args:
        function: Gets the call and the request, and returns the answer. It
            raises RpcError to answer with that.
    """

    async def handle(call: ServerCall) -> None:
        request = await call.receive()
        if request is None:
            raise RpcError("EOF")  # what Go's MsgRecv returns
        call.reply(await function(call, request))

    return handle


async def serve_rpc(
    link: Link,
    handlers: Mapping[str, Handler],
    *,
    ping_interval: float | None = None,
    max_streams: int = MAX_STREAMS,
    on_pong: Callable[[float], object] | None = None,
) -> None:
    """Serve one client until it leaves, or has to.

    It closes the link. What a client does wrong ends its session (1011 and a
    reason), or only the call, and never raises here. When it is cancelled, so
    are the handlers.

    Args:
        link: The connection.
        handlers: By the name of the method. Each runs in a task of its own.
            It returns when the call is done, or raises RpcError to answer
            with that; any other exception is a bug, which is logged.
        ping_interval: Seconds between the client's answer and the next ping;
            30 if None. A client that does not answer within 10 is gone.
        max_streams: Streams that the client may have open.
        on_pong: Called with the seconds that each answer took.
    """

    def start(call: ServerCall) -> None:
        handler = handlers.get(call.method)
        if handler is not None:
            nursery.start_soon(call.run, handler, name=call.method)
            return
        log.debug("rpc method unknown", **call.describe())
        text = _UNKNOWN_RPC.format(call.method)
        call.finish(RpcError(text, UNIMPLEMENTED))

    async with trio.open_nursery() as nursery:
        session = Session(
            link,
            Role.SERVER,
            nursery,
            make_call=lambda session, stream: ServerCall(session, stream, start),
            ping_interval=ping_interval,
            max_streams=max_streams,
            on_pong=on_pong,
        )
        try:
            await session.run()
        finally:
            end = session.end
            assert end is not None
            note = log.info if end.is_fault else log.debug
            note(
                "rpc session ended",
                reason=end.reason,
                code=end.code,
                refused_streams=session.refused_streams,
            )
            await session.close()
