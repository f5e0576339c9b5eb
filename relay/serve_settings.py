"""The settings of ``tailnet serve``: one table, three sources.

Each setting is a flag of the command line, an environment variable
``TAILNET_<FLAG_IN_CAPS>`` and a key of the TOML file that ``--config`` names.
The command line beats the environment, which beats the file; an empty
variable counts as unset. What Coder's server has too has its flag's name
(``codersdk/deployment.go``) and may also come from Coder's own variable,
which ``TAILNET_…`` beats.

API: :func:`load_serve_settings` makes a :class:`ServeSettings`, or raises
ConfigError with one line that names the source of the wrong value (the
command then ends with status 2). The table in words is
``docs/reference/serve-settings.md``.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from relay.addresses import ListenAddress
from relay.config import LogFormat, SwitchChoice, memory_bytes
from relay.derpmaps.build import (
    DISABLE,
    AccessUrl,
    MapOptions,
    build_derp_map,
    parse_stun_servers,
)
from relay.flags import quote
from relay.given import Given
from relay.serve_flags import SERVE_FLAGS, environment_variables
from relay.store.location import default_data_dir
from tailnet.derp.derpmap import MAX_REGION_ID
from tailnet.errors import ConfigError, DERPMapError

__all__ = (
    "DerpAdmission",
    "ServeSettings",
    "load_serve_settings",
    "read_verify_token",
)


# RFC 1035 2.3.1, less the rule on the first character, as everywhere.
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

# RFC 6750 2.1, with room for what generators of passwords like.
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}")


class DerpAdmission(enum.StrEnum):
    """Who may use the relay."""

    OPEN = "open"
    COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Everything the server was told, checked. Durations are in seconds.

    Attributes:
        http: Where to serve HTTP, or None.
        tls: Where to serve HTTPS, or None. One of the two is there.
        tls_cert_file: PEM, if there is HTTPS.
        tls_key_file: Its key.
        access_url: As it was given, or None: see :meth:`access_url_at`.
        stun: Where to answer STUN, or None.
        stun_follows_http: ``stun`` is host and port of the HTTP address (or of
            that for HTTPS): if the port is 0, it is the one that became of it.
        data_dir: May not be there yet.
        derp_map: How to build the DERP map; also whether to serve DERP, and
            whether direct connections are blocked.
        derp_force_websockets: Tell it to peers.
        workspace_hostname_suffix: Tell it to clients.
        browser_only: No tunnels for clients.
        derp_admission: Who may use the relay.
        verify_token: Bearer token of ``/derp/verify``, or None for nobody.
        verify_token_file: Where it is read again at a reload.
        api_rate_limit: Requests per minute, or None.
        log_format: How to log.
        switch: Which switch to use.
        queue_bytes: Per client of the relay, in bytes.
        queue_packets: Per client and lane.
        queue_total: Of all clients, in bytes, never 0.
        drain_timeout: After SIGTERM.
        warnings: Lines for the log: not wrong, but probably not meant.
    """

    http: ListenAddress | None = None
    tls: ListenAddress | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    access_url: AccessUrl | None = None
    stun: ListenAddress | None = None
    stun_follows_http: bool = False
    data_dir: Path
    derp_map: MapOptions = field(default_factory=MapOptions)
    derp_force_websockets: bool = False
    workspace_hostname_suffix: str = "coder"
    browser_only: bool = False
    derp_admission: DerpAdmission = DerpAdmission.OPEN
    verify_token: str | None = field(default=None, repr=False)
    verify_token_file: Path | None = None
    api_rate_limit: int | None = 512
    log_format: LogFormat = LogFormat.TEXT
    switch: SwitchChoice = SwitchChoice.AUTO
    queue_bytes: int = 2 << 20
    queue_packets: int = 4096
    queue_total: int = 256 << 20
    drain_timeout: float = 5.0
    warnings: tuple[str, ...] = ()

    @property
    def block_direct(self) -> bool:
        """Whether peers may not connect to each other directly."""
        return self.derp_map.block_direct

    def access_url_at(
        self, *, http_port: int | None = None, tls_port: int | None = None
    ) -> AccessUrl:
        """The access URL, once it is known which ports are served.

        Args:
            http_port: Of HTTP, if it is served.
            tls_port: Of HTTPS, if it is served: it is preferred.
        """
        if self.access_url is not None:
            return self.access_url
        if self.tls is not None and tls_port is not None:
            return AccessUrl("https", _reachable_host(self.tls.host), tls_port)
        assert self.http is not None
        assert http_port is not None
        return AccessUrl("http", _reachable_host(self.http.host), http_port)


def _is_every_interface(host: str) -> bool:
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _reachable_host(host: str) -> str:
    """A host that at least this machine reaches by the address it serves."""
    if not _is_every_interface(host):
        return host
    return "::1" if ":" in host else "127.0.0.1"


def load_serve_settings(
    arguments: Mapping[str, str], environ: Mapping[str, str]
) -> ServeSettings:
    """Put command line, environment and file together, and check the whole.

    Args:
        arguments: The texts of the command line, by name of the flag.
        environ: The environment.

    Raises:
        ConfigError: Something is wrong; the message is one line.
    """
    given = _Given()
    for name, text in arguments.items():
        given.take_text(name, text, f"--{name}")
    for flag in SERVE_FLAGS:
        if flag.name in arguments:
            continue
        for variable in environment_variables(flag.name):
            if text := environ.get(variable, ""):
                given.take_text(flag.name, text, variable)
                break
    if path := given.text("config"):
        given.take_file(path)
    return given.check()


class _Given(Given):
    """What was given to the server, and its rules."""

    def __init__(self) -> None:
        super().__init__(SERVE_FLAGS, dashes="--")
        self._warnings: list[str] = []

    def check(self) -> ServeSettings:
        http = self._address("http-address")
        tls, cert_file, key_file = self._check_tls()
        if http is None and tls is None:
            raise ConfigError(
                "nothing to serve: set --http-address, or --tls-enable and its files"
            )
        if http is not None and http == tls and http.port:
            raise self.error("tls-address", "it is the address for HTTP too")
        main = tls or http
        access_url = self._access_url()
        if access_url is None and main is not None and _is_every_interface(main.host):
            self._warnings.append(
                "--access-url is not set: other machines are told to find this server "
                "at a loopback address"
            )
        stun = self._stun(http or tls)
        options = self._map_options()
        if not (options.config_path or options.config_url):
            self._check_map(options)
        switch = SwitchChoice(self.choice("switch", SwitchChoice))
        if switch is SwitchChoice.NATIVE:
            raise self.error("switch", "there is no native switch yet, use auto")
        verify_token, verify_token_file = self._verify_token()
        return ServeSettings(
            http=http,
            tls=tls,
            tls_cert_file=cert_file,
            tls_key_file=key_file,
            access_url=access_url,
            stun=stun,
            stun_follows_http=stun is not None and not self.text("stun-address"),
            data_dir=self._data_dir(),
            derp_map=options,
            derp_force_websockets=self.flag("derp-force-websockets"),
            workspace_hostname_suffix=self._hostname_suffix(),
            browser_only=self.flag("browser-only"),
            derp_admission=DerpAdmission(self.choice("derp-admission", DerpAdmission)),
            verify_token=verify_token,
            verify_token_file=verify_token_file,
            api_rate_limit=self._rate_limit(),
            log_format=LogFormat(self.choice("log-format", LogFormat)),
            switch=switch,
            queue_bytes=self.integer("queue-bytes", 1),
            queue_packets=self.integer("queue-packets", 1),
            queue_total=self.integer("queue-total") or memory_bytes() // 4,
            drain_timeout=self.seconds("drain-timeout"),
            warnings=tuple(self._warnings),
        )

    def _address(self, name: str) -> ListenAddress | None:
        text = self.text(name)
        if text in ("", DISABLE):
            return None
        try:
            return ListenAddress.from_text(text)
        except ConfigError as exc:
            raise self.error(name, str(exc)) from None

    def _check_tls(self) -> tuple[ListenAddress | None, Path | None, Path | None]:
        names = ("tls-cert-file", "tls-key-file")
        if not self.flag("tls-enable"):
            self._warnings += [
                f"--{name} is ignored without --tls-enable"
                for name in (*names, "tls-address")
                if self.is_given(name)
            ]
            return None, None, None
        address = self._address("tls-address")
        if address is None:
            raise self.error("tls-address", "--tls-enable needs one")
        files = []
        for name in names:
            if not self.text(name):
                raise ConfigError(f"--tls-enable needs --{name}")
            files.append(Path(self.text(name)))
            self._read(name)
        return address, files[0], files[1]

    def _read(self, name: str) -> bytes:
        """What is in a small file."""
        try:
            with open(self.text(name), "rb") as file:
                return file.read(1 << 20)
        except (OSError, ValueError) as exc:  # a NUL in the path
            reason = getattr(exc, "strerror", None) or str(exc)
            raise self.error(name, f"cannot read it: {reason}") from exc

    def _access_url(self) -> AccessUrl | None:
        if not self.text("access-url"):
            return None
        try:
            return AccessUrl.from_text(self.text("access-url"))
        except ConfigError as exc:
            raise self.error("access-url", str(exc)) from None

    def _stun(self, main: ListenAddress | None) -> ListenAddress | None:
        text = self.text("stun-address")
        stun = self._address("stun-address") if text else main
        if stun is not None and self.flag("block-direct-connections"):
            if text:
                self._warnings.append(
                    "--stun-address is ignored with --block-direct-connections"
                )
            return None
        return stun

    def _map_options(self) -> MapOptions:
        path, url = self.text("derp-config-path"), self._url("derp-config-url")
        if path and url:
            raise self.error("derp-config-path", "--derp-config-url is set as well")
        entries = self.items("derp-server-stun-addresses")
        try:
            servers = parse_stun_servers(entries)
        except ConfigError as exc:
            raise self.error("derp-server-stun-addresses", str(exc)) from None
        if DISABLE in entries and len(entries) > 1:
            self._warnings.append(
                "--derp-server-stun-addresses: `disable` drops the others in the list"
            )
        if self._url("derp-server-relay-url"):
            self._warnings.append(
                "--derp-server-relay-url has no effect: this server has no replicas"
            )
        return MapOptions(
            serve_embedded=self.flag("derp-server-enable"),
            region_id=self.integer("derp-server-region-id", 1, MAX_REGION_ID),
            region_code=self.text("derp-server-region-code"),
            region_name=self.text("derp-server-region-name"),
            stun_servers=servers,
            block_direct=self.flag("block-direct-connections"),
            config_path=path,
            config_url=url,
        )

    def _check_map(self, options: MapOptions) -> None:
        """Without a custom map, whether it is usable is known now."""
        try:
            build_derp_map(options, access_url=AccessUrl("http", "localhost", 80))
        except DERPMapError as exc:
            raise ConfigError(str(exc)) from None

    def _url(self, name: str) -> str:
        text = self.text(name)
        if text:
            try:
                parts = urllib.parse.urlsplit(text)
                usable = parts.scheme in ("http", "https") and bool(parts.hostname)
                _ = parts.port
            except ValueError:
                usable = False
            if not usable or not text.isprintable() or " " in text:
                raise self.error(name, "no http(s) URL")
        return text

    def _hostname_suffix(self) -> str:
        name = "workspace-hostname-suffix"
        text = self.text(name)
        if text.startswith("."):
            raise self.error(name, "it begins with a dot")
        if len(text) > 253 or not _DNS_NAME.fullmatch(text):
            raise self.error(name, "no DNS name")
        return text

    def _data_dir(self) -> Path:
        text = self.text("data-dir")
        path = Path(text) if text else default_data_dir()
        if "\0" in text:
            raise self.error("data-dir", "no path")
        try:
            is_in_the_way = path.exists() and not path.is_dir()
        except OSError as exc:
            raise self.error("data-dir", exc.strerror or str(exc)) from exc
        if is_in_the_way:
            raise self.error("data-dir", f"{quote(os.fspath(path))} is no directory")
        return path

    def _verify_token(self) -> tuple[str | None, Path | None]:
        if not self.text("verify-token-file"):
            return None, None
        path = Path(self.text("verify-token-file"))
        try:
            return read_verify_token(path), path
        except ConfigError as exc:
            raise self.error("verify-token-file", str(exc)) from None

    def _rate_limit(self) -> int | None:
        limit = int(self.get("api-rate-limit"))
        if limit <= 0 or self.flag("dangerous-disable-rate-limits"):
            return None
        return limit


def read_verify_token(path: Path) -> str:
    """Read the bearer token of ``/derp/verify``.

    Raises:
        ConfigError: It cannot be used; the message is the reason alone and
            does not show it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(8192)
    except (OSError, ValueError) as exc:  # a NUL in the path
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ConfigError(f"cannot read it: {reason}") from exc
    token = content.decode("latin-1").strip(" \t\r\n")
    if not _TOKEN.fullmatch(token):
        raise ConfigError("there is no token in it: one word of ASCII is wanted")
    return token
