"""The relay as a whole: its rooms, their tasks, and how they start and stop.

Three nurseries, from the inside out: *acceptors* take connections in,
*sessions* shake hands with them, *services* carry packets. A graceful stop
ends them in that order: nobody new, then nobody half-way, then what is queued
is delivered and the switch closes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket

import structlog
import trio

from relay.config import ListenAddress, Settings
from relay.derp.pure_switch import PureSwitch
from relay.derp.session import Admission, DerpService
from relay.derp.switch import ConnectionClosed, Limits, Switch
from relay.front.certificates import Certificates
from relay.front.listeners import (
    AcceptLimiter,
    TcpOptions,
    accept_forever,
    open_listener,
)
from relay.front.router import Front
from relay.keyfile import find_key_file, load_or_create_key
from relay.memory import HeapTrimmer
from relay.pages.page import Request, Response
from tailnet.errors import ConfigError
from tailnet.keys import NodePrivate

__all__ = ("Relay", "open_relay")

log = structlog.get_logger("relay")


@dataclass(slots=True)
class Relay:
    """A running relay.

    Attributes:
        settings: What it was started with.
        derp: Handshakes, and the relay's key.
        switch: The connections, and what they carry.
        front: The main port.
        certificates: None on a plain port.
        addresses: Where it listens: ``derp``, ``http`` and ``stun``, those
            that there are, each with address and port.
        limiter: Counts accepted connections.
    """

    settings: Settings
    derp: DerpService
    switch: Switch
    front: Front
    certificates: Certificates | None
    limiter: AcceptLimiter
    addresses: dict[str, tuple[str, int]] = field(default_factory=dict)
    _stopping: trio.Event = field(default_factory=trio.Event)

    def stop(self) -> None:
        """Begin a graceful stop: what is queued is still delivered."""
        self._stopping.set()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def wait_stopping(self) -> None:
        """Wait until somebody has called :meth:`stop`."""
        await self._stopping.wait()

    def reload(self) -> None:
        """Read the certificate again; connections that exist keep theirs."""
        if self.certificates is not None:
            try:
                self.certificates.reload()
            except ConfigError as exc:
                log.error("the old certificate stays in use", reason=str(exc))
            else:
                log.info("certificate reloaded", expires=self.certificates.expires)


@asynccontextmanager
async def open_relay(
    settings: Settings, *, admission: Sequence[Admission] = ()
) -> AsyncIterator[Relay]:
    """Run a relay while the ``async with`` body runs.

    In the body all ports accept. Leaving it stops the relay gracefully;
    cancelling it stops it at once.

    Args:
        settings: See :func:`relay.config.load_settings`; port 0 is any.
        admission: Asked about each client, after those of ``settings``.

    Raises:
        ConfigError: A port, file or certificate cannot be used.
    """
    key = _load_key(settings)
    certificates: Certificates | None = None
    if settings.serve_tls:
        certificates = Certificates.load(
            Path(settings.cert_dir), settings.hostname, key.public()
        )
        if (snippet := certificates.pin_snippet) is not None:
            log.info("pin this certificate in the DERP map", node=snippet)
    switch = PureSwitch(
        limits=Limits(
            queue_bytes=settings.queue_bytes,
            queue_packets=settings.queue_packets,
            write_timeout=settings.tcp_write_timeout,
        ),
        queue_total=settings.queue_total,
    )
    derp = DerpService(key, switch, tuple(admission))
    front = Front(
        pages=_page,
        derp=derp if settings.derp else None,
        tls_context=None if certificates is None else certificates.current,
    )
    limiter = AcceptLimiter(
        settings.accept_connection_limit,
        settings.accept_connection_burst,
        trio.current_time(),
    )
    relay = Relay(settings, derp, switch, front, certificates, limiter)
    options = TcpOptions(settings.tcp_keepalive_time, settings.tcp_user_timeout)
    listener = _listen(relay, "derp", settings.listen, options)
    async with trio.open_nursery() as services:
        services.start_soon(switch.run)
        services.start_soon(_watch_events, switch)
        async with trio.open_nursery() as sessions, trio.open_nursery() as acceptors:
            acceptors.start_soon(
                _accept, listener, front, sessions, limiter if certificates else None
            )
            yield relay
            relay.stop()
            acceptors.cancel_scope.cancel()
            sessions.cancel_scope.deadline = (
                trio.current_time() + settings.drain_timeout
            )
        with trio.move_on_after(settings.drain_timeout):
            await switch.wait_flushed()
        services.cancel_scope.cancel()


async def _accept(
    listener: socket,
    front: Front,
    sessions: trio.Nursery,
    limiter: AcceptLimiter | None,
) -> None:
    await accept_forever(listener, front.serve, sessions, limiter=limiter)


def _load_key(settings: Settings) -> NodePrivate:
    if settings.dev:
        return NodePrivate.generate()
    return load_or_create_key(find_key_file(settings.key_file)).private


def _listen(
    relay: Relay, name: str, address: ListenAddress, options: TcpOptions
) -> socket:
    listener = open_listener(address.host, address.port, options)
    host, port = listener.getsockname()[:2]
    relay.addresses[name] = (host, port)
    return listener


async def _watch_events(switch: Switch) -> None:
    trimmer = HeapTrimmer()
    while True:
        for event in await switch.wait_events():
            if isinstance(event, ConnectionClosed):
                note = log.info if event.by_fault else log.debug
                note("client left", key=event.key.short, reason=event.reason)
                trimmer.note_connections(event.remaining)


def _page(request: Request) -> Response:
    if request.path in ("/derp/probe", "/derp/latency-check"):
        return Response(200, (("Access-Control-Allow-Origin", "*"),))
    return Response(404)
