"""HTTP proxies on the way out: which one to use, and how to ask it.

Which one: Go's ``golang.org/x/net/http/httpproxy``, which ``net/http`` and
Tailscale's client follow: ``HTTPS_PROXY`` and ``HTTP_PROXY``, by the scheme of
what is to be reached, and ``NO_PROXY``; each in lower case too. How to ask:
CONNECT (RFC 9110 9.3.6), for plain HTTP as well, since what follows is an
upgrade and not a request that a proxy could pass on.

The environment is an argument, bytes come in and go out.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

import h11

from tailnet.errors import ConfigError, LocalProtocolError, RemoteProtocolError

__all__ = (
    "MAX_ANSWER_LEN",
    "ConnectAnswer",
    "ConnectReader",
    "Proxy",
    "ProxyRules",
    "Scheme",
    "encode_connect",
    "join_host_port",
)

Scheme: TypeAlias = Literal["http", "https"]

# Ours. A proxy's head has some hundred bytes.
MAX_ANSWER_LEN: Final = 16 << 10

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def join_host_port(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. As text it is its URL without the password.

    Attributes:
        host: DNS name or IP address.
        port: TCP port.
        tls: Speak TLS to the proxy itself.
        user: For basic authentication; None if the proxy wants none.
        password: Goes with it.
    """

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read ``http://user:password@host:port``.

        As in Go, a text without a scheme is a host name, with port or not.

        Raises:
            ConfigError: Not the URL of an HTTP proxy. The message does not
                quote it: it may hold a password.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError as exc:
            raise ConfigError("the proxy's URL is not valid") from exc
        scheme = _proxy_scheme(parts)
        if not host:
            raise ConfigError("the proxy's URL has no host name")
        user = parts.username
        return cls(
            host=host,
            port=_DEFAULT_PORTS[scheme] if port is None else port,
            tls=scheme == "https",
            user=None if user is None else unquote(user),
            password=unquote(parts.password or ""),
        )

    def __str__(self) -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{join_host_port(self.host, self.port)}"


def _proxy_scheme(parts: SplitResult) -> str:
    if parts.scheme not in _DEFAULT_PORTS:
        raise ConfigError(
            f"there is no support for {parts.scheme} proxies; give an http or https URL"
        )
    return parts.scheme


# -- choosing ---------------------------------------------------------------


class ProxyRules:
    """Through which proxy to reach what.

    ``ProxyRules()`` never uses one.

    Args:
        https: URL of the proxy for what is reached by https and wss.
        http: URL of the proxy for what is reached by http and ws.
        no_proxy: What to reach without: names (with all that are below them;
            only those, if there is a dot or ``*.`` in front), addresses,
            networks in CIDR form; each but networks with a port or not;
            separated by commas. ``*`` is everything.
        cgi: Refuse to use ``http``: in a CGI program that variable comes from
            the request (``Proxy:`` header).
    """

    def __init__(
        self,
        *,
        https: str = "",
        http: str = "",
        no_proxy: str = "",
        cgi: bool = False,
    ) -> None:
        self._urls: dict[str, str] = {"https": https, "http": http}
        self._exceptions = _NoProxy(no_proxy)
        self._cgi = cgi
        self._always = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The rules that the usual variables give.

        A variable in capitals goes before the one in lower case; an empty one
        is as good as none.
        """

        def get(name: str) -> str:
            return environment.get(name) or environment.get(name.lower()) or ""

        return cls(
            https=get("HTTPS_PROXY"),
            http=get("HTTP_PROXY"),
            no_proxy=get("NO_PROXY"),
            cgi="REQUEST_METHOD" in environment,
        )

    @classmethod
    def always(cls, url: str) -> Self:
        """Use one proxy for everything, loopback too.

        Raises:
            ConfigError: Not the URL of an HTTP proxy.
        """
        Proxy.parse(url)
        rules = cls(https=url, http=url)
        rules._always = True
        return rules

    def proxy_for(self, scheme: Scheme, host: str, port: int) -> Proxy | None:
        """The proxy through which to reach something.

        ``localhost`` and loopback addresses are reached without one.

        Args:
            scheme: By which it is reached.
            host: DNS name or IP address, without brackets.
            port: TCP port.

        Returns:
            None: connect directly.

        Raises:
            ConfigError: The setting that counts here is wrong.
        """
        url = self._urls[scheme]
        if not url or not (self._always or self._exceptions.wants_proxy(host, port)):
            return None
        if scheme == "http" and self._cgi:
            raise ConfigError(
                "HTTP_PROXY is not used in a CGI program, where REQUEST_METHOD is set"
            )
        try:
            return Proxy.parse(url)
        except ConfigError as exc:
            raise ConfigError(f"{scheme.upper()}_PROXY: {exc}") from None


class _NoProxy:
    """``NO_PROXY``, as Go's httpproxy config.init and useProxy read it."""

    def __init__(self, text: str) -> None:
        self._everything = False
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._addresses: list[tuple[_IpAddress, int | None]] = []
        # The suffix with its dot, whether the name itself counts too, port.
        self._domains: list[tuple[str, bool, int | None]] = []
        for entry in text.split(","):
            self._add(entry.strip().lower())

    def _add(self, entry: str) -> None:
        if entry == "*":
            self._everything = True
            return
        if (network := _network(entry)) is not None:
            self._networks.append(network)
            return
        host, port = _split_port(entry)
        if (address := _address(host)) is not None:
            self._addresses.append((address, port))
            return
        name = _ascii(host[1:] if host.startswith("*.") else host)
        if name:
            itself = not name.startswith(".")
            self._domains.append((f".{name}" if itself else name, itself, port))

    def wants_proxy(self, host: str, port: int) -> bool:
        if self._everything:
            return False
        name = _ascii(host.strip().lower())
        address = _address(name)
        if address is None:
            return name != "localhost" and not any(
                (name.endswith(suffix) or (itself and name == suffix[1:]))
                and wanted in (None, port)
                for suffix, itself, wanted in self._domains
            )
        return not (
            address.is_loopback
            or any(address in network for network in self._networks)
            or any(
                address == other and wanted in (None, port)
                for other, wanted in self._addresses
            )
        )


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    # net.ParseCIDR takes a number of bits only, Python a netmask too.
    if not entry.partition("/")[2].isdigit():
        return None
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


def _split_port(entry: str) -> tuple[str, int | None]:
    """``host:port`` or ``[v6]:port``; what has no port is a host as it is."""
    host, colon, port = entry.rpartition(":")
    whole = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not whole) or not (port + "0").isdecimal():
        return entry, None
    return host.removeprefix("[").removesuffix("]"), int(port) if port else None


def _address(text: str) -> _IpAddress | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # Go's net.IP makes no difference between the two forms.
    return getattr(address, "ipv4_mapped", None) or address


def _ascii(name: str) -> str:
    """A name as DNS has it; as it is, if it cannot be one."""
    if name.isascii():
        return name
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return name


# -- asking -----------------------------------------------------------------


def encode_connect(proxy: Proxy, host: str, port: int) -> bytes:
    """The request for a connection through a proxy.

    Args:
        proxy: Whom it is for.
        host: DNS name or IP address to connect to.
        port: TCP port.

    Raises:
        LocalProtocolError: A name that HTTP forbids.
    """
    target = join_host_port(host, port)
    # Go's http.Transport and tailscale's dialNodeUsingProxy send the same.
    fields = [("Host", target), ("User-Agent", "tailnet")]
    if proxy.user is not None:
        credentials = f"{proxy.user}:{proxy.password}".encode()
        basic = base64.b64encode(credentials).decode()
        fields.append(("Proxy-Authorization", f"Basic {basic}"))
    try:
        request = h11.Request(method="CONNECT", target=target, headers=fields)
        return h11.Connection(h11.CLIENT).send(request) or b""
    except (h11.LocalProtocolError, UnicodeEncodeError) as exc:
        raise LocalProtocolError(f"not fit for an HTTP head: {exc}") from exc


@dataclass(frozen=True, slots=True)
class ConnectAnswer:
    """What a proxy answered.

    Attributes:
        status: Final; 200 to 299 means that the connection is there.
        reason: The words behind it; may be empty.
        rest: Bytes that came behind the head: of the connection itself, if
            there is one.
    """

    status: int
    reason: str
    rest: bytes

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return 200 <= self.status < 300


class ConnectReader:
    """Finds the answer to CONNECT. Feed it until it returns one."""

    __slots__ = ("_connection", "_received")

    def __init__(self) -> None:
        self._connection = h11.Connection(
            h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_LEN
        )
        # h11 judges an answer by the method of the request.
        self._connection.send(
            h11.Request(method="CONNECT", target="-:1", headers=[("Host", "-:1")])
        )
        self._connection.send(h11.EndOfMessage())
        self._received = 0

    def receive_data(self, data: bytes) -> ConnectAnswer | None:
        """Add bytes from the network.

        Args:
            data: What was read; ``b""`` means that the proxy closed.

        Returns:
            The answer when its head is complete, else None.

        Raises:
            RemoteProtocolError: Not HTTP, longer than MAX_ANSWER_LEN, or
                closed too early.
        """
        if not data:
            raise RemoteProtocolError("the proxy closed without an answer")
        self._received += len(data)
        try:
            self._connection.receive_data(data)
            while isinstance(
                event := self._connection.next_event(), h11.InformationalResponse
            ):
                pass
        except h11.RemoteProtocolError as exc:
            raise RemoteProtocolError(f"the proxy's answer is not HTTP: {exc}") from exc
        rest = bytes(self._connection.trailing_data[0])
        if self._received - len(rest) > MAX_ANSWER_LEN or (
            event is h11.NEED_DATA and self._received > MAX_ANSWER_LEN
        ):
            raise RemoteProtocolError(
                f"the proxy's answer has more than {MAX_ANSWER_LEN} bytes"
            )
        if isinstance(event, h11.Response):
            reason = bytes(event.reason).decode("latin-1")
            return ConnectAnswer(event.status_code, reason, rest)
        if event is h11.NEED_DATA:
            return None
        raise AssertionError(event)  # nothing else can begin an answer
