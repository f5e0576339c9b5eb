"""Who may see ``/debug/`` (tailscale ``tsweb/tsweb.go``, AllowDebugAccess).

derper takes these settings from its environment, and so do we:

- ``TS_DEBUG_KEY_PATH``: a file; a GET with its text as ``?debugkey=`` may.
- ``TS_ALLOW_DEBUG_IP``: one more address that may.
- ``TS_DEBUG_TRUSTED_CIDRS``: comma-separated prefixes that may.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from relay.pages.page import Request
from relay.pages.paths import query_value
from tailnet.errors import ConfigError

__all__ = ("DebugAccess",)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# net/tsaddr: CGNATRange without ChromeOSVMRange, and TailscaleULARange.
CGNAT: Final = ipaddress.IPv4Network("100.64.0.0/10")
CHROMEOS_VM: Final = ipaddress.IPv4Network("100.115.92.0/23")
TAILSCALE_ULA: Final = ipaddress.IPv6Network("fd7a:115c:a1e0::/48")


@dataclass(frozen=True, slots=True)
class DebugAccess:
    """The rule, with its settings.

    Attributes:
        key_path: File with the debug key, or empty.
        allowed_ip: One address, or empty.
        trusted: More addresses.
    """

    key_path: str = ""
    allowed_ip: str = ""
    trusted: tuple[_Network, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Take the settings from the environment.

        Raises:
            ConfigError: A prefix is none.
        """
        texts = environ.get("TS_DEBUG_TRUSTED_CIDRS", "").split(",")
        return cls(
            key_path=environ.get("TS_DEBUG_KEY_PATH", ""),
            allowed_ip=environ.get("TS_ALLOW_DEBUG_IP", ""),
            trusted=tuple(_parse_prefix(t.strip()) for t in texts if t.strip()),
        )

    def allows(self, request: Request) -> bool:
        """Whether the sender of a request may see debug pages."""
        if self._has_key(request):
            return True
        # Somebody forwards for others, so the address says nothing. This
        # header and no other: it is derper's rule.
        forwarded = (v for n, v in request.headers if n == b"x-forwarded-for" and v)
        if any(forwarded) or request.remote is None:
            return False
        try:
            ip = ipaddress.ip_address(request.remote[0])
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return (
            ip.is_loopback
            or _is_tailscale(ip)
            or str(ip) == self.allowed_ip
            or any(ip in network for network in self.trusted)
        )

    def _has_key(self, request: Request) -> bool:
        if not self.key_path or request.method != "GET":
            return False
        given = query_value(request.query, "debugkey").encode("utf-8", "replace")
        if not given:
            return False
        try:
            # At each request, so that a new key needs no restart.
            key = Path(self.key_path).read_bytes().strip()
        except (OSError, ValueError):
            return False
        return hmac.compare_digest(key, given)


def _is_tailscale(ip: _Address) -> bool:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip in CGNAT and ip not in CHROMEOS_VM
    return ip in TAILSCALE_ULA


def _parse_prefix(text: str) -> _Network:
    # netip.ParsePrefix: bits are a must, bits of the host may be set.
    try:
        address, slash, bits = text.partition("/")
        if not slash or not (bits.isascii() and bits.isdigit()) or "%" in address:
            raise ValueError("no prefix")
        return ipaddress.ip_network(text, strict=False)
    except ValueError as exc:
        raise ConfigError(f"invalid CIDR in TS_DEBUG_TRUSTED_CIDRS: {text!r}") from exc
