"""The tasks behind a program's ports, and how they start and stop.

Three nurseries, from the inside out: *acceptors* take connections in,
*sessions* shake hands with them, *services* carry packets. A graceful stop
ends them in that order: nobody new, then nobody half-way, then what is queued
is delivered and the switch closes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from socket import socket

import structlog
import trio

from relay.derp.switch import ConnectionClosed, Switch
from relay.front.listeners import AcceptLimiter, accept_forever
from relay.front.router import Front
from relay.memory import HeapTrimmer

__all__ = ("Port", "Stoppable", "open_ports")

log = structlog.get_logger("relay")


@dataclass(slots=True)
class Stoppable:
    """What can be asked to stop, and waited for until somebody did."""

    _stopping: trio.Event = field(default_factory=trio.Event, init=False)

    def stop(self) -> None:
        """Begin a graceful stop: what is queued is still delivered."""
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def wait_stopping(self) -> None:
        """Wait until somebody has called :meth:`stop`."""
        await self._stopping.wait()


@dataclass(frozen=True, slots=True)
class Port:
    """A listening socket, and who serves its connections.

    Attributes:
        listener: Listening and non-blocking; its owner closes it.
        front: Serves each connection.
        limiter: Bounds how fast connections are accepted; None: it does not.
    """

    listener: socket
    front: Front
    limiter: AcceptLimiter | None = None


@asynccontextmanager
async def open_ports(
    ports: Iterable[Port],
    switch: Switch,
    drain_timeout: float,
    stop: Callable[[], None],
) -> AsyncIterator[trio.Nursery]:
    """Serve ports while the ``async with`` body runs.

    An exception of the body stops all at once, and comes out as it is.

    Args:
        ports: Where connections come in.
        switch: Runs meanwhile.
        drain_timeout: Seconds for sessions and queues after the body.
        stop: Called when the body has ended, before anything is stopped: time
            to tell sessions that have no end of their own.

    Yields:
        A nursery for services that go on until everything is drained.
    """
    ports = list(ports)
    failure: Exception | None = None
    async with trio.open_nursery() as services:
        services.start_soon(switch.run)
        services.start_soon(_watch_events, switch)
        async with (
            trio.open_nursery() as sessions,
            trio.open_nursery() as acceptors,
        ):
            for port in ports:
                acceptors.start_soon(
                    partial(accept_forever, limiter=port.limiter),
                    port.listener,
                    port.front.serve,
                    sessions,
                )
            try:
                yield services
            except Exception as exc:
                # Kept out of the nurseries, which would wrap it in groups.
                failure = exc
                services.cancel_scope.cancel()
            else:
                stop()
                acceptors.cancel_scope.cancel()
                for port in ports:
                    port.front.drain()
                end = trio.current_time() + drain_timeout
                sessions.cancel_scope.deadline = end
        if failure is None:
            with trio.move_on_at(end):
                await switch.wait_flushed()
            services.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _watch_events(switch: Switch) -> None:
    trimmer = HeapTrimmer()
    while True:
        for event in await switch.wait_events():
            if isinstance(event, ConnectionClosed):
                note = log.info if event.by_fault else log.debug
                note("client left", key=event.key.short, reason=event.reason)
                trimmer.note_connections(event.remaining)
