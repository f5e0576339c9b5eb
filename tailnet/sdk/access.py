"""Where a server is, how to reach it, and as whom."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

from tailnet.errors import ConfigError
from tailnet.headers import HeaderSource
from tailnet.proxy import ProxyRules, Scheme
from tailnet.transport import ConnectTcp

__all__ = ("TOKEN_HEADER", "Access")

# codersdk client.go SessionTokenHeader.
TOKEN_HEADER: Final = "Coder-Session-Token"  # noqa: S105 - the name of it

_DEFAULT_PORTS: Final[dict[Scheme, int]] = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Access:
    """A server, and what is needed to talk to it. Made by ``parse``.

    Attributes:
        scheme: ``http`` or ``https``.
        host: DNS name or IP address, without brackets.
        port: TCP port.
        prefix: Of all paths; empty for most servers, else with a slash in
            front and none behind.
        token: Of a user or an agent; empty for none.
        headers: More HTTP headers, for gateways on the way.
        proxies: Which HTTP proxy to use.
        tls_context: Roots and client certificate; None for the system's roots.
        connect: Makes TCP connections; sockets if None.
    """

    scheme: Scheme
    host: str
    port: int
    prefix: str = ""
    token: str = field(default="", repr=False)
    headers: HeaderSource = field(default=(), repr=False)
    proxies: ProxyRules = field(default_factory=ProxyRules)
    tls_context: ssl.SSLContext | None = None
    connect: ConnectTcp | None = None

    @classmethod
    def parse(
        cls,
        url: str,
        token: str = "",
        *,
        headers: HeaderSource = (),
        proxies: ProxyRules | None = None,
        tls_context: ssl.SSLContext | None = None,
        connect: ConnectTcp | None = None,
    ) -> Self:
        """Read a server's URL.

        Args:
            url: ``https://coder.example.com``; without a scheme it is https.
            token: See the attributes, for all others too.
            headers: More HTTP headers.
            proxies: None for no proxy at all.
            tls_context: Roots and client certificate.
            connect: Makes TCP connections.

        Raises:
            ConfigError: It is no such URL.
        """
        try:
            parts = urlsplit(url if "://" in url else f"https://{url}")
            host, port = parts.hostname, parts.port
        except ValueError as exc:
            raise ConfigError(f"the server's URL is not valid: {exc}") from exc
        if parts.scheme not in _DEFAULT_PORTS or not host:
            raise ConfigError(
                f"the server's URL should look like https://coder.example.com, "
                f"not {url!r}"
            )
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError("the server's URL has more than a host and a path")
        scheme: Scheme = "https" if parts.scheme == "https" else "http"
        return cls(
            scheme=scheme,
            host=host,
            port=_DEFAULT_PORTS[scheme] if port is None else port,
            prefix=parts.path.rstrip("/"),
            token=token,
            headers=headers,
            proxies=ProxyRules() if proxies is None else proxies,
            tls_context=tls_context,
            connect=connect,
        )

    @property
    def authority(self) -> str:
        """Value of ``Host``: the port only if it is not the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == _DEFAULT_PORTS[self.scheme]
        return host if usual else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """As it was given, tidied; no slash at the end."""
        return f"{self.scheme}://{self.authority}{self.prefix}"
