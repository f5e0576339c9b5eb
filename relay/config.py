"""The settings of the relay program: one table, three sources.

Each setting is a flag of the command line, an environment variable
``TAILNET_RELAY_<FLAG_IN_CAPS>`` and a key of the TOML file that ``-config``
names. The command line beats the environment, which beats the file; an empty
variable counts as unset. Names, defaults and meanings of derper's flags are
derper's (tailscale ``cmd/derper/derper.go``); those after them in the table
are ours.

API: :func:`load_settings` makes a :class:`Settings`, or raises ConfigError
with one line that names the source of the wrong value (the program then ends
with status 2). ``Settings.wants_help`` and ``Settings.wants_version`` are to
be looked at first: with them nothing else has been checked.
"""

from __future__ import annotations

import enum
import math
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from relay.addresses import ListenAddress, split_host_port
from relay.flags import Flag, Kind, parse_arguments, quote, usage_text
from relay.given import MAX_INT, Given
from tailnet.errors import ConfigError

__all__ = (
    "FLAGS",
    "ListenAddress",
    "LogFormat",
    "Settings",
    "SwitchChoice",
    "help_text",
    "load_settings",
    "memory_bytes",
    "split_host_port",
)

ENVIRONMENT_PREFIX: Final = "TAILNET_RELAY_"

DEFAULT_LISTEN: Final = ListenAddress("", 443)

# The kernel takes no longer TCP_KEEPIDLE (MAX_TCP_KEEPIDLE in net/tcp.h).
MAX_KEEPALIVE: Final = 32767.0

_MESH: Final = "relays cannot mesh yet"
_ACME: Final = "certificates cannot be obtained yet, use -certmode manual"
_TAILSCALED: Final = "asking a local tailscaled is not there yet"


def _default_cert_dir() -> str:
    # tsweb.DefaultCertDir on os.UserCacheDir: relative values of
    # XDG_CACHE_HOME are an error there, and the default is then empty.
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache:
        home = os.environ.get("HOME")
        cache = f"{home}/.cache" if home else ""
    return f"{cache}/tailscale/derper-certs" if cache.startswith("/") else ""


FLAGS: Final[tuple[Flag, ...]] = (
    Flag("dev", Kind.BOOL, False, "run in localhost development mode (overrides -a)"),
    Flag("version", Kind.BOOL, False, "print version and exit"),
    Flag(
        "a",
        Kind.STRING,
        ":443",
        'address to serve HTTP or HTTPS on: ":port", "ip:port" or "[ip]:port"; '
        "without an IP, all interfaces. It is HTTPS if the port is 443 or "
        "-certmode is manual",
    ),
    Flag(
        "http-port",
        Kind.INT,
        80,
        "port of the plain HTTP helper beside HTTPS, on the IP of -a; -1 for none",
    ),
    Flag("stun-port", Kind.INT, 3478, "UDP port to serve STUN on, on the IP of -a"),
    Flag(
        "c",
        Kind.STRING,
        "",
        "file with the private key of the relay, made if it is not there",
    ),
    Flag(
        "certmode",
        Kind.STRING,
        "letsencrypt",
        "where the certificate comes from: manual, letsencrypt or gcp "
        "(only manual is available yet)",
    ),
    Flag(
        "certdir",
        Kind.STRING,
        _default_cert_dir(),
        "directory with <hostname>.crt and <hostname>.key",
    ),
    Flag(
        "hostname",
        Kind.STRING,
        "derp.tailscale.com",
        "TLS host name; with -certmode manual it may be an IP address, which is "
        "served whatever name a client asks for",
    ),
    Flag("acme-eab-kid", Kind.STRING, "", "ACME account binding key id", _ACME),
    Flag("acme-eab-key", Kind.STRING, "", "ACME account binding HMAC key", _ACME),
    Flag("acme-email", Kind.STRING, "", "ACME contact address", _ACME),
    Flag("acme-ip-certs", Kind.BOOL, False, "get certificates for our IPs", _ACME),
    Flag("stun", Kind.BOOL, True, "serve STUN, on the IP of -a"),
    Flag(
        "derp",
        Kind.BOOL,
        True,
        "serve DERP; false keeps only the pages and bootstrap DNS of a host that "
        "is being retired",
    ),
    Flag(
        "home",
        Kind.STRING,
        "",
        'what to serve at /: empty for the home page, "blank" for an empty one, '
        "or an http(s) URL to redirect to",
    ),
    Flag(
        # derper's default is the first of two files that exists; without
        # mesh, only a value that somebody wrote can be meant.
        "mesh-psk-file",
        Kind.STRING,
        "",
        "file with the key that the relays of a region share",
        _MESH,
    ),
    Flag("mesh-with", Kind.STRING, "", "hosts to mesh with, comma-separated", _MESH),
    Flag("secrets-url", Kind.STRING, "", "setec server of the mesh key", _MESH),
    Flag("secrets-path-prefix", Kind.STRING, "prod/derp", "setec path prefix", _MESH),
    Flag(
        "secrets-cache-dir",
        Kind.STRING,
        os.path.join(os.environ.get("HOME", ""), ".cache/derper-secrets"),
        "directory to cache setec secrets in",
        _MESH,
    ),
    Flag(
        "bootstrap-dns-names",
        Kind.STRING,
        "",
        "names to resolve and publish at /bootstrap-dns, comma-separated",
    ),
    Flag(
        "unpublished-bootstrap-dns-names",
        Kind.STRING,
        "",
        "names to resolve for /bootstrap-dns and not to list there",
        "unlisted bootstrap DNS names are not there yet",
    ),
    Flag("verify-clients", Kind.BOOL, False, "admit by local tailscaled", _TAILSCALED),
    Flag(
        "verify-client-url",
        Kind.STRING,
        "",
        "URL of an admission controller that is asked for each client",
    ),
    Flag(
        "verify-client-url-fail-open",
        Kind.BOOL,
        True,
        "admit a client when -verify-client-url cannot be reached",
    ),
    Flag("socket", Kind.STRING, "", "path of tailscaled's socket", _TAILSCALED),
    Flag(
        "accept-connection-limit",
        Kind.FLOAT,
        math.inf,
        "HTTPS connections to accept per second; those above are closed at once",
    ),
    Flag(
        "accept-connection-burst",
        Kind.INT,
        MAX_INT,
        "HTTPS connections that may come at once under -accept-connection-limit",
    ),
    Flag(
        "rate-config",
        Kind.STRING,
        "",
        "JSON file with the rate limit per client",
        "rate limits per client are not there yet",
    ),
    Flag("tcp-keepalive-time", Kind.DURATION, 600.0, "TCP keepalive time"),
    Flag("tcp-user-timeout", Kind.DURATION, 15.0, "TCP user timeout"),
    Flag(
        "tcp-write-timeout",
        Kind.DURATION,
        2.0,
        "how long a client may take no bytes before it is cut off; 0 for ever",
    ),
    Flag(
        "ace",
        Kind.BOOL,
        False,
        "proxy CONNECT to the control plane",
        "the CONNECT proxy is not there yet",
    ),
    # From here on: ours.
    Flag("config", Kind.STRING, "", "TOML file with settings, named as the flags"),
    Flag("log-format", Kind.STRING, "text", "text, or json: an object a line"),
    Flag(
        "switch",
        Kind.STRING,
        "auto",
        "what carries packets: native, python, or auto for the best there is",
    ),
    Flag(
        "queue-bytes",
        Kind.SIZE,
        2 << 20,
        "bytes that may wait for one client; the oldest packet goes first",
    ),
    Flag("queue-packets", Kind.INT, 4096, "packets that may wait for one client"),
    Flag(
        "queue-total",
        Kind.SIZE,
        0,
        "bytes that may wait for all clients; 0 for a quarter of the memory",
    ),
    Flag(
        "drain-timeout",
        Kind.DURATION,
        5.0,
        "how long clients may still be served after SIGTERM",
    ),
)


class LogFormat(enum.StrEnum):
    """How a log line is written."""

    TEXT = "text"
    JSON = "json"


class SwitchChoice(enum.StrEnum):
    """Which switch carries the packets."""

    AUTO = "auto"
    PYTHON = "python"
    NATIVE = "native"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the program was told, checked. Durations are in seconds.

    Attributes:
        wants_help: Print :func:`help_text` and end with status 0.
        wants_version: Print the version and end with status 0.
        dev: Development: ``:3340``, and a new key at each start.
        listen: The main port.
        serve_tls: Whether the main port speaks TLS.
        http: The plain HTTP helper beside TLS, or None.
        stun: The STUN port, or None.
        key_file: As given with ``-c``, maybe empty.
        cert_dir: Where the certificate is.
        hostname: What the certificate is for.
        derp: Whether to serve DERP at all.
        home: ``""``, ``"blank"`` or a URL.
        bootstrap_dns_names: To be published at ``/bootstrap-dns``.
        verify_client_url: Admission controller, or empty.
        verify_client_url_fail_open: Admit when it cannot be reached.
        accept_connection_limit: Per second, on the TLS port.
        accept_connection_burst: Connections.
        tcp_keepalive_time: Idle time before the first probe; None for no
            probes.
        tcp_user_timeout: 0 for the kernel's own.
        tcp_write_timeout: 0 for no limit.
        log_format: How to log.
        switch: Which switch to use.
        queue_bytes: Per client, in bytes.
        queue_packets: Per client and lane.
        queue_total: Of all clients, in bytes, never 0.
        drain_timeout: After SIGTERM.
        warnings: Lines for the log: not wrong, but probably not meant.
    """

    wants_help: bool = False
    wants_version: bool = False
    dev: bool = False
    listen: ListenAddress = DEFAULT_LISTEN
    serve_tls: bool = True
    http: ListenAddress | None = None
    stun: ListenAddress | None = None
    key_file: str = ""
    cert_dir: str = ""
    hostname: str = "derp.tailscale.com"
    derp: bool = True
    home: str = ""
    bootstrap_dns_names: tuple[str, ...] = ()
    verify_client_url: str = ""
    verify_client_url_fail_open: bool = True
    accept_connection_limit: float = math.inf
    accept_connection_burst: int = MAX_INT
    tcp_keepalive_time: float | None = 600.0
    tcp_user_timeout: float = 15.0
    tcp_write_timeout: float = 2.0
    log_format: LogFormat = LogFormat.TEXT
    switch: SwitchChoice = SwitchChoice.AUTO
    queue_bytes: int = 2 << 20
    queue_packets: int = 4096
    queue_total: int = 256 << 20
    drain_timeout: float = 5.0
    warnings: tuple[str, ...] = ()


def help_text() -> str:
    """What ``-help`` prints."""
    return usage_text("tailnet-relay", FLAGS)


def load_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Put command line, environment and file together, and check the whole.

    Args:
        argv: Arguments, without the name of the program.
        environ: The environment.

    Raises:
        ConfigError: Something is wrong; the message is one line.
    """
    given = _Given()
    arguments = parse_arguments(FLAGS, argv)
    if arguments.wants_help:
        return Settings(wants_help=True)
    for name, text in arguments.texts.items():
        given.take_text(name, text, f"flag -{name}")
    if given.flag("version"):
        return Settings(wants_version=True)
    for name in _BY_NAME:
        if name in arguments.texts or name == "version":
            continue  # images like to put their version into such a variable
        variable = ENVIRONMENT_PREFIX + name.upper().replace("-", "_")
        if text := environ.get(variable, ""):
            given.take_text(name, text, variable)
    if path := given.text("config"):
        given.take_file(path)
    warnings = []
    if arguments.rest:
        # Go's rule, and a trap: after "-stun false" nothing is a flag.
        warnings.append(
            f"arguments after the flags are ignored: {quote(arguments.rest[0])}"
        )
    known = {ENVIRONMENT_PREFIX + n.upper().replace("-", "_") for n in _BY_NAME}
    warnings += [
        f"environment variable {name} is no setting of the relay"
        for name in sorted(environ)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known
    ]
    if given.flag("dev") and environ.get("TAILSCALE_DERPER_MESH_KEY"):
        warnings.append(f"TAILSCALE_DERPER_MESH_KEY is ignored: {_MESH}")
    return replace(given.check(), warnings=tuple(warnings))


_BY_NAME: Final = {flag.name: flag for flag in FLAGS}


class _Given(Given):
    """What was given to the relay, and its rules."""

    def __init__(self) -> None:
        super().__init__(FLAGS, dashes="-")

    def check(self) -> Settings:
        for name, flag in _BY_NAME.items():
            if flag.missing and self.get(name) != flag.default:
                raise self.error(name, flag.missing)
        address = ":3340" if self.flag("dev") else self.text("a")
        try:
            listen = ListenAddress.from_text(address)
        except ConfigError as exc:
            raise self.error("a", str(exc)) from None
        serve_tls = self._check_tls(address)
        http_port = self.integer("http-port", -MAX_INT - 1, 65535)
        stun_port = self.integer("stun-port", 0, 65535) if self.flag("stun") else None
        home = self.text("home")
        if home not in ("", "blank") and not home.startswith(("http://", "https://")):
            raise self.error("home", "neither blank nor an http(s) URL")
        limit = float(self.get("accept-connection-limit"))
        if not limit >= 0:  # also NaN
            raise self.error("accept-connection-limit", "no rate")
        keep_alive = float(self.get("tcp-keepalive-time"))
        switch = SwitchChoice(self.choice("switch", SwitchChoice))
        if switch is SwitchChoice.NATIVE:
            raise self.error("switch", "there is no native switch yet, use auto")
        return Settings(
            dev=self.flag("dev"),
            listen=listen,
            serve_tls=serve_tls,
            http=(
                ListenAddress(listen.host, http_port)
                if serve_tls and http_port > -1
                else None
            ),
            stun=None if stun_port is None else ListenAddress(listen.host, stun_port),
            key_file=self.text("c"),
            cert_dir=self.text("certdir"),
            hostname=self.text("hostname"),
            derp=self.flag("derp"),
            home=home,
            bootstrap_dns_names=tuple(
                name for name in self.text("bootstrap-dns-names").split(",") if name
            ),
            verify_client_url=self._verify_client_url(),
            verify_client_url_fail_open=self.flag("verify-client-url-fail-open"),
            accept_connection_limit=limit,
            accept_connection_burst=self.integer("accept-connection-burst"),
            # net.ListenConfig.KeepAlive: zero means 15 s, negative means off.
            tcp_keepalive_time=(
                None if keep_alive < 0 else min(keep_alive or 15.0, MAX_KEEPALIVE)
            ),
            tcp_user_timeout=self.seconds("tcp-user-timeout"),
            tcp_write_timeout=self.seconds("tcp-write-timeout"),
            log_format=LogFormat(self.choice("log-format", LogFormat)),
            switch=switch,
            queue_bytes=self.integer("queue-bytes", 1),
            queue_packets=self.integer("queue-packets", 1),
            queue_total=self.integer("queue-total") or memory_bytes() // 4,
            drain_timeout=self.seconds("drain-timeout"),
        )

    def _check_tls(self, address: str) -> bool:
        """Whether the main port speaks TLS, by derper's rule."""
        mode = self.text("certmode")
        # tsweb.IsProd443 looks at the text of the port, not at its number.
        if split_host_port(address)[1] not in ("443", "https") and mode != "manual":
            return False
        if mode in ("letsencrypt", "gcp"):
            raise self.error("certmode", _ACME)
        if mode != "manual":
            raise self.error("certmode", "use manual")
        if not self.text("certdir"):
            raise ConfigError("missing required -certdir flag")
        return True

    def _verify_client_url(self) -> str:
        text = self.text("verify-client-url")
        if text:
            # derper finds out at the first client, and its default is then
            # to admit everybody. Better to say so at the start.
            try:
                parts = urllib.parse.urlsplit(text)
                usable = parts.scheme in ("http", "https") and bool(parts.hostname)
                _ = parts.port
            except ValueError:
                usable = False
            if not usable:
                raise self.error("verify-client-url", "no http(s) URL")
        return text


def memory_bytes() -> int:
    """The memory this process may use: the machine's, or its container's."""
    total = int(psutil.virtual_memory().total)
    for path in (
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():  # or "max"
            total = min(total, int(text))
    return total
