"""Addresses to listen on, as Go writes them: ``:443``, ``[::1]:https``."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Self

from tailnet.errors import ConfigError

__all__ = ("ListenAddress", "split_host_port")


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen.

    Attributes:
        host: An IP address or a name; empty for all interfaces, IPv6 and IPv4.
        port: 0 for one that the kernel picks.
    """

    host: str
    port: int

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse Go's ``host:port`` (``net.SplitHostPort``).

        Args:
            text: ``:443``, ``192.0.2.1:80``, ``[::1]:443``, ``:https``.

        Raises:
            ConfigError: No such address; the message is the reason alone.
        """
        host, port_text = split_host_port(text)
        return cls(host, _lookup_port(port_text))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def split_host_port(text: str) -> tuple[str, str]:
    """Split as Go's ``net.SplitHostPort`` does, with its reasons.

    Raises:
        ConfigError: There is no port, or a colon or bracket too many.
    """
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        raise ConfigError("missing port in address")
    if host.startswith("["):
        inner, bracket, after = host[1:].partition("]")
        if not bracket:
            raise ConfigError("missing ']' in address")
        if after:
            raise ConfigError("too many colons in address")
        host = inner
    elif ":" in host:
        raise ConfigError("too many colons in address")
    for part in (host, port):
        for character in "[]":
            if character in part:
                raise ConfigError(f"unexpected {character!r} in address")
    return host, port


def _lookup_port(text: str) -> int:
    if not text:
        return 0  # net.Listen(":"): any port
    if text.isascii() and text.isdigit():
        port = int(text)
        if port > 65535:
            raise ConfigError("invalid port")
        return port
    try:
        return socket.getservbyname(text.lower(), "tcp")
    except (OSError, UnicodeError):
        # Images without /etc/services still know these two; so does Go.
        known = {"http": 80, "https": 443}.get(text.lower())
        if known is None:
            raise ConfigError(f"unknown port {text!r}") from None
        return known
