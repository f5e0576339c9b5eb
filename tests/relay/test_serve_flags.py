"""The table of flags, against Coder's and against its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.flags import Flag, Kind, format_default
from relay.serve_flags import CODER_VARIABLES, SERVE_FLAGS, environment_variables

PAGE = Path(__file__).parents[2] / "docs/reference/serve-settings.md"

CODER = {
    "derp-server-enable": ("CODER_DERP_SERVER_ENABLE", True),
    "derp-server-region-id": ("CODER_DERP_SERVER_REGION_ID", 999),
    "derp-server-region-code": ("CODER_DERP_SERVER_REGION_CODE", "coder"),
    "derp-server-region-name": (
        "CODER_DERP_SERVER_REGION_NAME",
        "Coder Embedded Relay",
    ),
    # There: five servers of Google. Nobody is asked unless it is wanted.
    "derp-server-stun-addresses": ("CODER_DERP_SERVER_STUN_ADDRESSES", ""),
    "derp-server-relay-url": ("CODER_DERP_SERVER_RELAY_URL", ""),
    "block-direct-connections": ("CODER_BLOCK_DIRECT", False),
    "derp-force-websockets": ("CODER_DERP_FORCE_WEBSOCKETS", False),
    "derp-config-url": ("CODER_DERP_CONFIG_URL", ""),
    "derp-config-path": ("CODER_DERP_CONFIG_PATH", ""),
    "workspace-hostname-suffix": ("CODER_WORKSPACE_HOSTNAME_SUFFIX", "coder"),
    "browser-only": ("CODER_BROWSER_ONLY", False),
    "http-address": ("CODER_HTTP_ADDRESS", "127.0.0.1:3000"),
    "access-url": ("CODER_ACCESS_URL", ""),
    "tls-enable": ("CODER_TLS_ENABLE", False),
    "tls-address": ("CODER_TLS_ADDRESS", "127.0.0.1:3443"),
    "tls-cert-file": ("CODER_TLS_CERT_FILE", ""),
    "tls-key-file": ("CODER_TLS_KEY_FILE", ""),
    "api-rate-limit": ("CODER_API_RATE_LIMIT", 512),
    "dangerous-disable-rate-limits": ("CODER_DANGEROUS_DISABLE_RATE_LIMITS", False),
}


def test_table_has_the_flags_of_coder() -> None:
    ours = {flag.name: flag.default for flag in SERVE_FLAGS}
    assert {name: (CODER_VARIABLES[name], ours[name]) for name in CODER} == CODER
    assert set(CODER_VARIABLES) == set(CODER)


@pytest.mark.parametrize("flag", SERVE_FLAGS, ids=lambda flag: flag.name)
def test_each_flag_has_a_variable_of_ours(flag: Flag) -> None:
    first, *rest = environment_variables(flag.name)
    assert first == "TAILNET_" + flag.name.upper().replace("-", "_")
    assert rest == ([CODER[flag.name][0]] if flag.name in CODER else [])


# -- the page ---------------------------------------------------------------


def row(flag: Flag) -> str:
    default = format_default(flag).strip('"')
    if flag.kind is Kind.BOOL:
        default = default or "false"
    variables = ", ".join(f"`{name}`" for name in environment_variables(flag.name))
    cells = (
        f"`--{flag.name}`",
        flag.kind.value or "bool",
        f"`{default}`" if default else "",
        variables,
        flag.usage,
    )
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def test_the_page_has_the_table() -> None:
    """To renew the table, copy what this wants."""
    page = PAGE.read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| `--")]
    assert table == [row(flag) for flag in SERVE_FLAGS]
