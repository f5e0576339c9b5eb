"""The relay as a whole: its rooms, their tasks, and how they start and stop.

Its settings, its ports (``ports.py`` runs them), and what is behind them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from socket import socket

import structlog
import trio

from relay.config import ListenAddress, Settings
from relay.derp.pure_switch import PureSwitch
from relay.derp.session import Admission, DerpService
from relay.derp.switch import Limits, Switch
from relay.front.application import application
from relay.front.certificates import Certificates
from relay.front.listeners import (
    AcceptLimiter,
    TcpOptions,
    open_listener,
)
from relay.front.router import Front
from relay.keyfile import find_key_file, load_or_create_key
from relay.pages.access import DebugAccess
from relay.pages.bootstrap_dns import BootstrapDns
from relay.pages.metrics import Metrics
from relay.pages.site import Site
from relay.ports import Port, Stoppable, open_ports
from relay.stun import StunStatistics, open_stun_socket, serve_stun
from tailnet.keys import NodePrivate

__all__ = ("Relay", "open_relay")

log = structlog.get_logger("relay")


@dataclass(slots=True)
class Relay(Stoppable):
    """A running relay.

    Attributes:
        settings: What it was started with.
        derp: Handshakes, and the relay's key.
        switch: The connections, and what they carry.
        front: The main port.
        certificates: None on a plain port.
        stun: Counters of the STUN responder.
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
    stun: StunStatistics = field(default_factory=StunStatistics)
    addresses: dict[str, tuple[str, int]] = field(default_factory=dict)

    def reload(self) -> None:
        """Read the certificate again; connections that exist keep theirs."""
        if self.certificates is not None:
            self.certificates.reload_or_log()


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
    async with (
        _open_admission(settings) as own,
        _run_relay(settings, (*own, *admission)) as relay,
    ):
        yield relay


@asynccontextmanager
async def _open_admission(settings: Settings) -> AsyncIterator[Sequence[Admission]]:
    """Who is to be asked about each client, by the settings."""
    if not settings.verify_client_url:
        yield ()
        return
    # Imported only when used: it brings a whole HTTP client along.
    from relay.verify import open_url_admission

    async with open_url_admission(
        settings.verify_client_url,
        is_fail_open=settings.verify_client_url_fail_open,
    ) as ask_url:
        yield (ask_url,)


@asynccontextmanager
async def _run_relay(
    settings: Settings, admission: Sequence[Admission]
) -> AsyncIterator[Relay]:
    relay = _build(settings, admission)
    dns = BootstrapDns(settings.bootstrap_dns_names)
    site = _build_site(relay, dns)
    relay.front.pages = application(site.answer)
    options = TcpOptions(settings.tcp_keepalive_time, settings.tcp_user_timeout)
    with ExitStack() as sockets:
        main = _listen(relay, sockets, "derp", settings.listen, options)
        helper: socket | None = None
        if settings.http is not None:
            helper = _listen(relay, sockets, "http", settings.http, options)
        stun: socket | None = None
        if settings.stun is not None:
            stun = open_stun_socket(settings.stun.host, settings.stun.port)
            _note_address(relay, sockets, "stun", stun)
        # derper limits accepts on its TLS port alone.
        limiter = relay.limiter if settings.serve_tls else None
        ports = [Port(main, relay.front, limiter)]
        if helper is not None:
            front = Front(pages=application(site.answer_helper), derp=None)
            ports.append(Port(helper, front))
        async with open_ports(
            ports, relay.switch, settings.drain_timeout, relay.stop
        ) as services:
            services.start_soon(dns.run)
            if stun is not None:
                services.start_soon(serve_stun, stun, relay.stun)
            yield relay


def _build(settings: Settings, admission: Sequence[Admission]) -> Relay:
    """The rooms of a relay, before anything runs."""
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
        derp=derp if settings.derp else None,
        tls_context=None if certificates is None else certificates.current,
    )
    limiter = AcceptLimiter(
        settings.accept_connection_limit,
        settings.accept_connection_burst,
        trio.current_time(),
    )
    return Relay(settings, derp, switch, front, certificates, limiter)


def _build_site(relay: Relay, dns: BootstrapDns) -> Site:
    settings = relay.settings
    metrics = Metrics(
        switch=relay.switch.statistics,
        sessions=relay.derp.statistics,
        front=relay.front.statistics,
        stun=relay.stun,
        bootstrap_dns=dns.statistics,
        limiter=relay.limiter if settings.serve_tls else None,
        version=version("tailnet"),
    )
    return Site(
        metrics=metrics,
        bootstrap_dns=dns,
        access=DebugAccess.from_environment(os.environ),
        home=settings.home,
        hostname=settings.hostname,
        switch_name=relay.switch.name,
        serves_derp=settings.derp,
        dev=settings.dev,
    )


def _load_key(settings: Settings) -> NodePrivate:
    if settings.dev:
        return NodePrivate.generate()
    loaded = load_or_create_key(find_key_file(settings.key_file))
    if loaded.warning:
        log.warning(loaded.warning)
    return loaded.private


def _listen(
    relay: Relay,
    sockets: ExitStack,
    name: str,
    address: ListenAddress,
    options: TcpOptions,
) -> socket:
    setting = "-a" if name == "derp" else "-http-port"
    listener = open_listener(address.host, address.port, options, setting=setting)
    _note_address(relay, sockets, name, listener)
    return listener


def _note_address(relay: Relay, sockets: ExitStack, name: str, sock: socket) -> None:
    sockets.callback(sock.close)
    host, port = sock.getsockname()[:2]
    relay.addresses[name] = (host, port)
