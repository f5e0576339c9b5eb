"""One call on a session: what the server's and the client's end share.

The session's reader hands over what arrives for the call, and never waits for
it. Messages are kept for :meth:`Call.receive`; the peer's credit grows as they
are taken, so that a reader who is slow slows down its peer.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

import trio

from tailnet.control.drpc import SPLIT_LEN, PacketDecoder
from tailnet.control.drpc_stream import (
    DrpcStream,
    Ended,
    Invoked,
    Message,
    SendClosed,
    StreamEvent,
)
from tailnet.control.yamux import YamuxStream
from tailnet.errors import LocalProtocolError, RemoteProtocolError, RpcError

if TYPE_CHECKING:
    from tailnet.control.session import Session

__all__ = ("MAX_WAITING_MESSAGES", "Call")

# Ours: whole messages of one call that wait to be taken. More stay bytes,
# which cost no more than the window; Go decodes one ahead.
MAX_WAITING_MESSAGES: Final = 16


class Call:
    """One end of a call.

    Attributes:
        ended: The peer has ended the call, or is gone: nothing can be sent,
            and ``receive`` gives what came before, if that was not taken.
        end_error: What the peer ended it with; None if not with an error.
        was_cut: It ended without a word, by a reset, or the end of the stream
            or of the session; so messages may be missing.
    """

    __slots__ = (
        "_all_received",
        "_decoder",
        "_discarding",
        "_drpc",
        "_eof",
        "_fin_wanted",
        "_handed",
        "_held",
        "_input_over",
        "_lot",
        "_messages",
        "_pending",
        "_queued",
        "_sendable",
        "_session",
        "_stream",
        "_unreturned",
        "end_error",
        "ended",
        "was_cut",
    )

    def __init__(self, session: Session, stream: YamuxStream, *, server: bool) -> None:
        self._session = session
        self._stream = stream
        self._drpc = DrpcStream(server=server)
        self._decoder = PacketDecoder()
        # Receiving: messages, their bytes, and received bytes whose credit the
        # peer has not got back.
        self._messages: list[bytes] = []
        self._queued = 0
        self._unreturned = 0
        self._held = 0  # as the session counts it
        self._eof = False
        self._all_received = False  # the peer has said CloseSend
        self._input_over = False  # or has ended the call
        self._discarding = False
        # Sending: packets without credit, and where in all that the session
        # has sent those end that the link has not got rid of. Lists are short
        # here, and empty ones a tenth of a deque.
        self._sendable = True
        self._pending: list[bytes | memoryview] = []
        self._handed: list[int] = []
        self._fin_wanted = False
        self._lot = trio.lowlevel.ParkingLot()
        self.ended = False
        self.was_cut = False
        self.end_error: RpcError | None = None

    @property
    def stream(self) -> YamuxStream:
        """The stream that carries it."""
        return self._stream

    def describe(self) -> dict[str, object]:
        """What a log line should say of it."""
        return {"stream": self._stream.id}

    # -- receiving ----------------------------------------------------------

    async def _next_message(self) -> bytes | None:
        """The next message; None after the last one. To cancel loses none."""
        await trio.lowlevel.checkpoint()
        while not self._messages:
            if self._input_over:
                return None
            await self._lot.park()
        message = self._messages.pop(0)
        self._queued -= len(message)
        self._decode()
        self._session.flush_control()
        return message

    def handle_data(self, data: bytes) -> None:
        """Take data of the stream."""
        if self._discarding or self.ended:
            self._session.consume(self._stream, len(data))
            return
        self._unreturned += len(data)
        self._decoder.receive_data(data)
        self._decode()

    def handle_eof(self) -> None:
        """The peer sends no more: a dRPC transport is then of no use."""
        self._eof = True
        if self._discarding:
            self._end(was_cut=True)
            self._session.close_stream(self._stream)
        else:
            self._decode()

    def handle_reset(self) -> None:
        """The stream is dead; what was not decoded yet is lost."""
        self._end(was_cut=True)

    def handle_credit(self) -> None:
        """The peer takes more."""
        if self._pending:
            self._send_pending()

    def _decode(self) -> None:
        """Make messages of what has come, as far as there is room for them."""
        if self._discarding:
            return
        decoder, messages = self._decoder, self._messages
        try:
            while len(messages) < MAX_WAITING_MESSAGES and not (
                self.ended or self._discarding
            ):
                packet = decoder.next_packet()
                if packet is None:
                    break
                event = self._drpc.handle_packet(packet)
                if event is not None:
                    self._handle(event)
        except RemoteProtocolError as exc:
            self._session.fail_call(self, exc)
            return
        if self._discarding:
            return
        if self._eof and (
            len(messages) < MAX_WAITING_MESSAGES or not decoder.undecoded
        ):
            self._end(was_cut=True)
        # What is part of an unfinished packet is out of the way too: else a
        # message longer than the window could never come.
        done = self._unreturned - self._queued - decoder.undecoded
        if done > 0:
            self._unreturned -= done
            self._session.consume(self._stream, done)
        self._hold(self._queued + decoder.held)

    def _hold(self, size: int) -> None:
        self._session.hold(size - self._held)
        self._held = size

    def _handle(self, event: StreamEvent) -> None:
        match event:
            case Message(data):
                self._messages.append(data)
                self._queued += len(data)
                self._lot.unpark_all()
            case SendClosed():
                self._all_received = self._input_over = True
                self._lot.unpark_all()
            case Ended(error):
                self._end(error=error)
            case Invoked():
                self._on_invoked(event)

    def _on_invoked(self, event: Invoked) -> None:
        """The server's end starts its handler."""

    def _on_ended(self) -> None:
        """The peer has ended the call."""

    def _end(self, *, error: RpcError | None = None, was_cut: bool = False) -> None:
        if self.ended:
            return
        self.ended = self._input_over = True
        self.was_cut = was_cut and not self._all_received
        self.end_error = error
        self._sendable = False
        self._pending.clear()
        self._lot.unpark_all()
        self._on_ended()

    def _discard_input(self) -> None:
        """Nobody takes messages any more; the peer must not wait for it."""
        if self._discarding:
            return
        self._discarding = self._input_over = True
        self._messages.clear()
        self._queued = 0
        self._decoder = PacketDecoder()
        self._hold(0)
        self._session.consume(self._stream, self._unreturned)
        self._unreturned = 0

    # -- sending ------------------------------------------------------------

    async def send(self, message: bytes) -> None:
        """Send a message; returns when the socket has (nearly) all of it.

        A message whose ``send`` is cancelled is sent nevertheless.

        Raises:
            trio.BrokenResourceError: The peer has ended the call or is gone.
            LocalProtocolError: The message is too long, or this end is closed.
        """
        await trio.lowlevel.checkpoint()
        if self.ended:
            raise trio.BrokenResourceError("the peer has ended the call")
        if not self._sendable:
            raise LocalProtocolError("a message behind the end of the call")
        self.send_nowait(message)
        while self._pending:
            await self._lot.park()
        await self._session.wait_writable()
        if self.ended:
            raise trio.BrokenResourceError("the peer has ended the call")

    def send_nowait(self, message: bytes) -> None:
        """Send a message now, or as soon as there is credit for it.

        Nothing happens if the call is over; ``receive`` says so. The caller
        looks at ``backlog``: what waits is not limited here.

        Raises:
            LocalProtocolError: The message is longer than 4 MiB.
        """
        if not self._sendable:
            return
        size = len(message)
        if size <= SPLIT_LEN and not self._pending:
            header = self._drpc.message_header(size)
            size += len(header)
            stream = self._stream
            if size <= stream.send_credit:
                session = self._session
                if session.transmit(
                    b"".join((stream.data_header(size), header, message))
                ):
                    self._handed.append(session.handed)
                return
            self._pending.append(header + message)
        else:
            self._pending.append(self._drpc.encode_message(message))
        self._send_pending()

    @property
    def backlog(self) -> int:
        """Messages that the peer, or the way to it, is too slow for.

        They wait for credit, or are among what the link has not sent.
        """
        handed = self._handed
        if handed:
            sent = self._session.handed - self._session.link.unsent
            del handed[: bisect_right(handed, sent)]
        return len(self._pending) + len(handed)

    def _send_packets(self, wire: bytes) -> None:
        """Send encoded packets, behind what waits already."""
        if wire and not self.ended:
            self._pending.append(wire)
            self._send_pending()

    def _send_pending(self) -> None:
        stream, pending, session = self._stream, self._pending, self._session
        while pending and stream.send_credit:
            wire, credit = pending[0], stream.send_credit
            if len(wire) <= credit:
                del pending[0]
            else:
                rest = memoryview(wire)
                pending[0], wire = rest[credit:], rest[:credit]
            if session.transmit(b"".join((stream.data_header(len(wire)), wire))):
                self._handed.append(session.handed)
        if not pending:
            self._lot.unpark_all()
            if self._fin_wanted:
                session.close_stream(stream)

    def _finish_sending(self, wire: bytes) -> None:
        """Send the last packets; nothing can be sent behind them."""
        self._send_packets(wire)
        self._sendable = False
