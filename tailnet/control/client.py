"""Making calls: the client's end of a control session, on trio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Self

import trio

from tailnet.control.calls import Call
from tailnet.control.drpc_stream import CallState
from tailnet.control.link import Link
from tailnet.control.session import Session, SessionEnd
from tailnet.control.yamux import Role
from tailnet.errors import NotConnectedError, RpcError

__all__ = ("ClientCall", "RpcClient", "open_rpc_client")


class ClientCall(Call):
    """A call, for the one who made it. One task sends, one receives.

    Iterating gives the server's messages to the last one.
    """

    __slots__ = ("_invoke",)

    _invoke: bytes

    async def send(self, message: bytes) -> None:
        """Send a message; see :meth:`Call.send`."""
        await super().send(message)

    def send_nowait(self, message: bytes) -> None:
        """Send a message as soon as there is credit for it."""
        self._send_invoke()
        super().send_nowait(message)

    async def close_send(self) -> None:
        """Say that there are no more messages from here."""
        await trio.lowlevel.checkpoint()
        self._send_packets(self._invoke + self._drpc.encode_close_send())
        self._invoke = b""
        self._sendable = False
        await self._session.wait_writable()

    async def receive(self) -> bytes | None:
        """The server's next message; None when it has sent the last one.

        Raises:
            RpcError: The server has ended the call with this.
            NotConnectedError: The call broke off: the server has dropped it,
                or the session is over.
        """
        self._send_invoke()
        message = await self._next_message()
        if message is None:
            if self.end_error is not None:
                raise RpcError(self.end_error.text, self.end_error.code)
            if self.was_cut:
                raise NotConnectedError(self._cut_reason())
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    def _cut_reason(self) -> str:
        end = self._session.end
        if end is None:
            return "the server has dropped the call"
        return f"the session is over: {end.reason or 'the server has left'}"

    def _send_invoke(self) -> None:
        # With the first message, or when an answer is waited for: so a unary
        # call is one write, as it is from Go.
        invoke, self._invoke = self._invoke, b""
        self._send_packets(invoke)

    def start(self, method: str, metadata: Mapping[str, str] | None) -> None:
        """Prepare the Invoke."""
        self._invoke = self._drpc.encode_invoke(method, metadata)

    def send_unary(self, request: bytes) -> None:
        """Send all that a unary call has, in one write."""
        wire = self._invoke + self._drpc.encode_message(request)
        self._invoke = b""
        self._finish_sending(wire + self._drpc.encode_close_send())

    def close(self, *, cut: bool) -> None:
        """Leave the call.

        Args:
            cut: Drop it, instead of saying Close.
        """
        over = self.ended or self._drpc.state is CallState.TERMINATED
        # A server that has not heard of the call could not make sense of Close.
        if self._invoke or (cut and not over):
            self._discard_input()
            self._session.reset_stream(self._stream)
            return
        self._finish_sending(self._drpc.encode_close())
        self._discard_input()
        self._fin_wanted = True
        self._session.expect_close(self._stream)
        if not self._pending:
            self._session.close_stream(self._stream)


class RpcClient:
    """The client's end of a session; made by :func:`open_rpc_client`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @asynccontextmanager
    async def call(
        self, method: str, *, metadata: Mapping[str, str] | None = None
    ) -> AsyncGenerator[ClientCall]:
        """Call a method with streams of messages.

        The server hears of it with the first message, or when one is waited
        for. At the end of the block the call is closed, and after an
        exception or when cancelled it is dropped.

        Args:
            method: Its name, ``/package.Service/Method``.
            metadata: Pairs for the server.

        Raises:
            NotConnectedError: The session is over, or the server takes no
                calls.
        """
        call = await self._open(method, metadata)
        cut = True
        try:
            yield call
            cut = False
        finally:
            call.close(cut=cut)

    async def unary(
        self, method: str, request: bytes, *, metadata: Mapping[str, str] | None = None
    ) -> bytes:
        """Call a method that has one request and one answer.

        Raises:
            RpcError: The answer is an error.
            NotConnectedError: There will be no answer.
        """
        async with self.call(method, metadata=metadata) as call:
            call.send_unary(request)
            answer = await call.receive()
        if answer is None:
            raise NotConnectedError("the server has ended the call without an answer")
        return answer

    async def _open(
        self, method: str, metadata: Mapping[str, str] | None
    ) -> ClientCall:
        session = self._session
        stream = await session.open_stream()
        call = ClientCall(session, stream, server=False)
        session.calls[stream.id] = call
        call.start(method, metadata)
        return call

    @property
    def is_closed(self) -> bool:
        """Whether the session is over."""
        return self._session.end is not None

    async def wait_closed(self) -> str:
        """Wait until the session is over.

        Returns:
            Why, for people; empty if the server just left.
        """
        await self._session.ended.wait()
        assert self._session.end is not None
        return self._session.end.reason


@asynccontextmanager
async def open_rpc_client(
    link: Link, *, ping_interval: float | None = None
) -> AsyncGenerator[RpcClient]:
    """Start a session over a link, and close the link at the end of the block.

    When the session breaks the block goes on; its calls raise
    NotConnectedError.

    Args:
        link: The connection.
        ping_interval: Seconds between the server's answer and the next ping;
            30 if None.
    """
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            session = Session(link, Role.CLIENT, nursery, ping_interval=ping_interval)
            nursery.start_soon(session.run)
            try:
                yield RpcClient(session)
            except BaseException as exc:
                raised = exc
                raise
            finally:
                session.finish(SessionEnd())
                await session.close()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The session's own tasks raise nothing, so this is the block's own
        # exception: it arrives as it was raised.
        if raised is not None and group.exceptions == (raised,):
            raise raised from raised.__cause__
        raise
