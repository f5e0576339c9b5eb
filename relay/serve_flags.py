"""The flags of ``tailnet serve``: one table, and where else each may come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relay.flags import Flag, Kind

__all__ = (
    "CODER_VARIABLES",
    "SERVE_FLAGS",
    "environment_variables",
)

SERVE_FLAGS: Final[tuple[Flag, ...]] = (
    Flag(
        "http-address",
        Kind.STRING,
        "127.0.0.1:3000",
        'address to serve HTTP on: ":port", "ip:port" or "[ip]:port"; without an IP, '
        "all interfaces; port 0 is any; empty or `disable` for none",
    ),
    Flag(
        "access-url",
        Kind.STRING,
        "",
        "URL where agents and clients reach the server; by default it is made of the "
        "address that is served",
    ),
    Flag("tls-enable", Kind.BOOL, False, "serve HTTPS too"),
    Flag("tls-address", Kind.STRING, "127.0.0.1:3443", "address to serve HTTPS on"),
    Flag("tls-cert-file", Kind.STRING, "", "PEM file with the certificate chain"),
    Flag("tls-key-file", Kind.STRING, "", "PEM file with the key of the certificate"),
    Flag(
        "stun-address",
        Kind.STRING,
        "",
        "UDP address to answer STUN on, or `disable`; by default host and port of "
        "the HTTP address (of the HTTPS address if there is no HTTP)",
    ),
    Flag(
        "data-dir",
        Kind.STRING,
        "",
        "directory with everything that outlives a restart; by default the user's "
        "data directory",
    ),
    Flag(
        "derp-server-enable",
        Kind.BOOL,
        True,
        "be a relay, and list it in the DERP map as the embedded one",
    ),
    Flag("derp-server-region-id", Kind.INT, 999, "id of the embedded relay's region"),
    Flag(
        "derp-server-region-code",
        Kind.STRING,
        "coder",
        "short name of the embedded relay's region",
    ),
    Flag(
        "derp-server-region-name",
        Kind.STRING,
        "Coder Embedded Relay",
        "long name of the embedded relay's region",
    ),
    Flag(
        "derp-server-stun-addresses",
        Kind.LIST,
        "",
        "outside STUN servers to list in the DERP map, as host:port with commas; "
        "`disable` for none. Peers ask them, this server does not",
    ),
    Flag(
        "derp-server-relay-url",
        Kind.STRING,
        "",
        "URL where other servers of the same region would reach this one; without "
        "effect, as there are none",
    ),
    Flag(
        "block-direct-connections",
        Kind.BOOL,
        False,
        "let all traffic go through relays: peers are told so, and no STUN is in the "
        "DERP map or answered",
    ),
    Flag(
        "derp-force-websockets",
        Kind.BOOL,
        False,
        "tell peers to reach relays by websocket only",
    ),
    Flag(
        "derp-config-url",
        Kind.STRING,
        "",
        "URL of a DERP map in JSON to add the embedded relay to; looked at every 3 s, "
        "and its last good answer is kept in the data directory",
    ),
    Flag(
        "derp-config-path",
        Kind.STRING,
        "",
        "file with a DERP map in JSON or YAML to add the embedded relay to; looked "
        "at every second",
    ),
    Flag(
        "workspace-hostname-suffix",
        Kind.STRING,
        "coder",
        "DNS suffix of workspaces, for clients",
    ),
    Flag(
        "browser-only",
        Kind.BOOL,
        False,
        "answer 409 to clients that want a tunnel to an agent",
    ),
    # From here on Coder has nothing of the kind, but for the rate limits.
    Flag(
        "derp-admission",
        Kind.STRING,
        "open",
        "who may use the relay: open for everybody, coordinator for peers that the "
        "coordinator knows",
    ),
    Flag(
        "verify-token-file",
        Kind.STRING,
        "",
        "file with the bearer token by which outside relays may ask at /derp/verify "
        "who may use them; without it, nobody may ask",
    ),
    Flag(
        "api-rate-limit",
        Kind.INT,
        512,
        "API requests per minute and user, or IP address for unknown users; none if "
        "it is 0 or negative",
    ),
    Flag(
        "dangerous-disable-rate-limits",
        Kind.BOOL,
        False,
        "do without any rate limit",
    ),
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
        "bytes that may wait for one client of the relay; the oldest packet goes first",
    ),
    Flag(
        "queue-packets",
        Kind.INT,
        4096,
        "packets that may wait for one client of the relay",
    ),
    Flag(
        "queue-total",
        Kind.SIZE,
        0,
        "bytes that may wait for all clients of the relay; 0 for a quarter of the "
        "memory",
    ),
    Flag(
        "drain-timeout",
        Kind.DURATION,
        5.0,
        "how long clients may still be served after SIGTERM",
    ),
)


# Coder's variables, by flag (codersdk/deployment.go).
CODER_VARIABLES: Final[Mapping[str, str]] = {
    "http-address": "CODER_HTTP_ADDRESS",
    "access-url": "CODER_ACCESS_URL",
    "tls-enable": "CODER_TLS_ENABLE",
    "tls-address": "CODER_TLS_ADDRESS",
    "tls-cert-file": "CODER_TLS_CERT_FILE",
    "tls-key-file": "CODER_TLS_KEY_FILE",
    "derp-server-enable": "CODER_DERP_SERVER_ENABLE",
    "derp-server-region-id": "CODER_DERP_SERVER_REGION_ID",
    "derp-server-region-code": "CODER_DERP_SERVER_REGION_CODE",
    "derp-server-region-name": "CODER_DERP_SERVER_REGION_NAME",
    "derp-server-stun-addresses": "CODER_DERP_SERVER_STUN_ADDRESSES",
    "derp-server-relay-url": "CODER_DERP_SERVER_RELAY_URL",
    "block-direct-connections": "CODER_BLOCK_DIRECT",
    "derp-force-websockets": "CODER_DERP_FORCE_WEBSOCKETS",
    "derp-config-url": "CODER_DERP_CONFIG_URL",
    "derp-config-path": "CODER_DERP_CONFIG_PATH",
    "workspace-hostname-suffix": "CODER_WORKSPACE_HOSTNAME_SUFFIX",
    "browser-only": "CODER_BROWSER_ONLY",
    "api-rate-limit": "CODER_API_RATE_LIMIT",
    "dangerous-disable-rate-limits": "CODER_DANGEROUS_DISABLE_RATE_LIMITS",
}


def environment_variables(name: str) -> tuple[str, ...]:
    """The variables of a flag, the one that wins first."""
    ours = "TAILNET_" + name.upper().replace("-", "_")
    coders = CODER_VARIABLES.get(name)
    return (ours,) if coders is None else (ours, coders)
