"""The program ``tailnet-relay``: settings in, signals in, exit status out."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import structlog
import trio

from relay.app import Relay, open_relay
from relay.config import help_text, load_settings
from relay.program import (
    configure_logging,
    prepare_process,
    ready_line,
    run_until_signal,
)
from tailnet.errors import ConfigError

__all__ = ("main",)


def main() -> None:
    """Run the relay until a signal ends it.

    Exit status: 0 after a signal, 2 for a bad configuration.
    """
    try:
        settings = load_settings(sys.argv[1:], os.environ)
        if settings.wants_help:
            print(help_text(), file=sys.stderr)
            return
        if settings.wants_version:
            print(f"tailnet-relay {version('tailnet')} (switch: python)")
            return
        configure_logging(settings.log_format)
        for warning in settings.warnings:
            structlog.get_logger("relay").warning(warning)
        prepare_process()
        trio.run(run_until_signal, open_relay(settings), _say_ready)
    except ConfigError as exc:
        print(f"tailnet-relay: {exc}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _say_ready(relay: Relay) -> None:
    line = ready_line(
        "tailnet-relay",
        relay.addresses,
        relay.settings.log_format,
        switch=relay.switch.name,
    )
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
