"""The server as a whole: relay, STUN and the coordinator's API on one port.

:func:`open_server` puts the rooms together and runs them. Everything that can
be wrong with the settings is found before the first port listens.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from socket import socket
from typing import Final

import structlog

from relay.addresses import ListenAddress
from relay.api.agent_session import AGENT_ROUTES
from relay.api.context import VERSION_HEADER, ApiContext
from relay.api.debug import DEBUG_ROUTES
from relay.api.derp_verify import VERIFY_ROUTES, coordinator_admission
from relay.api.identity import (
    Authenticator,
    Authorizer,
    OwnerAuthorizer,
    StoreAuthenticator,
)
from relay.api.networking import NETWORKING_ROUTES
from relay.api.rate_limit import RateLimit
from relay.api.rest import REST_ROUTES
from relay.api.router import Router
from relay.derp.pure_switch import PureSwitch
from relay.derp.session import Admission, DerpService
from relay.derp.switch import Limits
from relay.derpmaps.feed import open_derp_map_feed
from relay.front.application import Takeover
from relay.front.certificates import Certificates
from relay.front.listeners import TcpOptions, open_listener
from relay.front.router import Front
from relay.keyfile import load_or_create_key
from relay.pages.access import DebugAccess
from relay.pages.bootstrap_dns import BootstrapDns
from relay.pages.metrics import Metrics
from relay.pages.page import Request, Response
from relay.pages.site import Site
from relay.ports import Port, Stoppable, open_ports
from relay.serve_settings import DerpAdmission, ServeSettings, read_verify_token
from relay.store.location import prepare_data_dir
from relay.store.sql_store import open_store
from relay.store.store import Store
from relay.stun import StunStatistics, open_stun_socket, serve_stun
from relay.watcher import Watcher
from tailnet.coordinator.resume import ResumeTokens
from tailnet.coordinator.serve import CoordinatorService
from tailnet.errors import ConfigError, StoreError

__all__ = ("API_ROUTES", "Server", "open_server")

log = structlog.get_logger("relay")

# Every endpoint but the relay's own pages.
API_ROUTES: Final = (
    *NETWORKING_ROUTES,
    *AGENT_ROUTES,
    *REST_ROUTES,
    *DEBUG_ROUTES,
    *VERIFY_ROUTES,
)

# Its file in the data directory.
RELAY_KEY: Final = "relay.key"


@dataclass(slots=True)
class Server(Stoppable):
    """A running server.

    Attributes:
        settings: What it was started with.
        context: The rooms behind the API.
        derp: The relay's handshakes; None if there is no relay.
        switch: The relay's connections.
        access_url: Where clients reach it.
        certificates: None without TLS.
        addresses: Where it listens: ``http``, ``https`` and ``stun``, those
            that there are, each with address and port.
        stun: Counters of the STUN responder.
    """

    settings: ServeSettings
    context: ApiContext
    derp: DerpService | None
    switch: PureSwitch
    access_url: str
    certificates: Certificates | None
    addresses: dict[str, tuple[str, int]]
    stun: StunStatistics = field(default_factory=StunStatistics)

    @property
    def switch_name(self) -> str:
        """Which switch carries packets."""
        return self.switch.name

    def reload(self) -> None:
        """Read certificate, DERP map and verify token again.

        Connections keep what they have; what cannot be read stays as it was.
        """
        self.context.derp_maps.reload()
        path = self.settings.verify_token_file
        if path is not None:
            try:
                token = read_verify_token(path)
            except ConfigError as exc:
                log.error("the old verify token stays in use", reason=str(exc))
            else:
                self.context.settings = replace(
                    self.context.settings, verify_token=token
                )
        if self.certificates is not None:
            self.certificates.reload_or_log()


@asynccontextmanager
async def open_server(
    settings: ServeSettings,
    *,
    store: Store | None = None,
    authenticator: Authenticator | None = None,
    authorizer: Authorizer | None = None,
    admission: Sequence[Admission] = (),
) -> AsyncIterator[Server]:
    """Run a server while the ``async with`` body runs.

    In the body all ports accept. Leaving it stops the server gracefully:
    peers are told, and requests finish; cancelling it stops it at once.

    Args:
        settings: See :mod:`relay.serve_settings`; port 0 is any.
        store: Users, workspaces and agents; by default ``tailnet.db`` in the
            data directory.
        authenticator: Whose token is it? By default the store knows.
        authorizer: May they? By default owners may, and admins.
        admission: Asked about each client of the relay, after those of
            ``settings``.

    Raises:
        ConfigError: A port, file or certificate cannot be used.
    """
    database = prepare_data_dir(settings.data_dir)
    if store is None:
        try:
            async with (
                open_store(database) as own,
                open_server(
                    settings,
                    store=own,
                    authenticator=authenticator,
                    authorizer=authorizer,
                    admission=admission,
                ) as server,
            ):
                yield server
        except StoreError as exc:
            raise ConfigError(str(exc)) from exc
        return
    async with _run_server(
        settings,
        store,
        authenticator or StoreAuthenticator(store),
        authorizer or OwnerAuthorizer(store),
        admission,
    ) as server:
        yield server


@asynccontextmanager
async def _run_server(
    settings: ServeSettings,
    store: Store,
    authenticator: Authenticator,
    authorizer: Authorizer,
    admission: Sequence[Admission],
) -> AsyncIterator[Server]:
    key = load_or_create_key(settings.data_dir / RELAY_KEY).private
    certificates = None
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        certificates = Certificates.from_files(
            settings.tls_cert_file, settings.tls_key_file, key.public()
        )
    with ExitStack() as stack:
        sockets = _Sockets(stack)
        sockets.open(settings)
        access_url = settings.access_url_at(
            http_port=sockets.port("http"), tls_port=sockets.port("https")
        )
        async with open_derp_map_feed(
            settings.derp_map,
            access_url=access_url,
            stun_port=sockets.port("stun"),
            data_dir=settings.data_dir,
        ) as derp_maps:
            # Coder's command compares it with its own, and warns of another,
            # but not of what is no release (buildinfo.go VersionsMatch).
            context = ApiContext(
                settings=settings,
                store=store,
                authenticator=authenticator,
                authorizer=authorizer,
                coordinator=CoordinatorService(),
                derp_maps=derp_maps,
                resume_tokens=ResumeTokens(time.time),
                deployment_id=await store.deployment_id(),
                access_url=str(access_url),
                version=f"v0.0.0-tailnet+{version('tailnet')}",
            )
            switch = PureSwitch(
                limits=Limits(
                    queue_bytes=settings.queue_bytes,
                    queue_packets=settings.queue_packets,
                ),
                queue_total=settings.queue_total,
            )
            if settings.derp_admission is DerpAdmission.COORDINATOR:
                admission = (coordinator_admission(context.coordinator), *admission)
            derp = DerpService(key, switch, tuple(admission))
            server = Server(
                settings,
                context,
                derp if settings.derp_map.serve_embedded else None,
                switch,
                str(access_url),
                certificates,
                addresses=sockets.addresses,
            )
            fronts = _build_fronts(server, derp)
            ports = [
                Port(listener, fronts[name])
                for name, listener in sockets.listeners.items()
            ]
            watcher = Watcher(context, switch)
            await watcher.load_signing_keys()
            context.coordinator.on_node_key_gone(watcher.drop_node_key)
            async with open_ports(
                ports, switch, settings.drain_timeout, watcher.hang_up
            ) as services:
                services.start_soon(derp_maps.run)
                services.start_soon(context.heartbeats.run)
                services.start_soon(context.coordinator.run)
                services.start_soon(watcher.watch_revisions)
                services.start_soon(watcher.renew_signing_keys)
                if sockets.stun is not None:
                    services.start_soon(serve_stun, sockets.stun, server.stun)
                yield server


class _Sockets:
    """The sockets of a server, closed with ``stack``."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.listeners: dict[str, socket] = {}
        self.stun: socket | None = None
        self.addresses: dict[str, tuple[str, int]] = {}

    def open(self, settings: ServeSettings) -> None:
        """Open all that the settings name.

        Raises:
            ConfigError: An address cannot be used.
        """
        for name, address, setting in (
            ("http", settings.http, "--http-address"),
            ("https", settings.tls, "--tls-address"),
        ):
            if address is not None:
                listener = open_listener(
                    address.host, address.port, TcpOptions(), setting=setting
                )
                self.listeners[name] = listener
                self._note(name, listener)
        if settings.stun is not None:
            self.stun = self._open_stun(settings.stun, settings.stun_follows_http)
            self._note("stun", self.stun)

    def _open_stun(self, address: ListenAddress, follows_http: bool) -> socket:
        port = address.port
        if follows_http and not port:
            port = self.port("http") or self.port("https") or 0
        advice = "--stun-address, or --stun-address disable"
        return open_stun_socket(address.host, port, advice=advice)

    def _note(self, name: str, sock: socket) -> None:
        self._stack.callback(sock.close)
        host, port = sock.getsockname()[:2]
        self.addresses[name] = (host, port)

    def port(self, name: str) -> int | None:
        """The port of a socket, or None if it is not there."""
        address = self.addresses.get(name)
        return None if address is None else address[1]


def _build_fronts(server: Server, derp: DerpService) -> dict[str, Front]:
    """Who serves the connections of each listener."""
    context, settings = server.context, server.settings
    router = Router(context, API_ROUTES, limit=RateLimit(settings.api_rate_limit or 0))
    # Coder's server says its version in every answer, not only in the API's; but
    # a raw upgrade to DERP is answered past its HTTP server.
    headers = ((VERSION_HEADER, context.version),)
    fronts = {
        "http": Front(derp=server.derp, headers=headers),
        "https": Front(
            derp=server.derp,
            headers=headers,
            tls_context=(
                None if server.certificates is None else server.certificates.current
            ),
        ),
    }
    dns = BootstrapDns(())
    for front in fronts.values():
        site = Site(
            metrics=Metrics(
                switch=server.switch.statistics,
                sessions=derp.statistics,
                front=front.statistics,
                stun=server.stun,
                bootstrap_dns=dns.statistics,
                limiter=None,
                version=context.version,
            ),
            bootstrap_dns=dns,
            access=DebugAccess.from_environment(os.environ),
            switch_name=server.switch.name,
            serves_derp=server.derp is not None,
        )
        front.pages = partial(_answer, router, site, headers)
    return fronts


async def _answer(
    router: Router,
    site: Site,
    headers: tuple[tuple[str, str], ...],
    request: Request,
) -> Response | Takeover:
    """The API answers what is its own, and the relay's pages all else."""
    if router.knows(request.path):
        return await router.answer(request)
    page = site.answer(request)
    return replace(page, headers=(*page.headers, *headers))
