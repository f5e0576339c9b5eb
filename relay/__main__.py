"""The program ``tailnet-relay``: settings in, signals in, exit status out."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from importlib.metadata import version

import structlog
import trio

from relay.app import Relay, open_relay
from relay.config import LogFormat, Settings, help_text, load_settings
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
        _configure_logging(settings.log_format)
        for warning in settings.warnings:
            structlog.get_logger("relay").warning(warning)
        _raise_descriptor_limit()
        sys.unraisablehook = _log_unraisable
        trio.run(_run, settings)
    except ConfigError as exc:
        print(f"tailnet-relay: {exc}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


async def _run(settings: Settings) -> None:
    wrong: ConfigError | None = None
    with trio.open_signal_receiver(
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    ) as signals:
        async with trio.open_nursery() as nursery:
            try:
                async with open_relay(settings) as relay:
                    # What lives now lives for ever: no need to collect it.
                    gc.collect()
                    gc.freeze()
                    nursery.start_soon(_handle_signals, signals, relay, nursery)
                    _say_ready(relay)
                    await relay.wait_stopping()
            except ConfigError as exc:
                wrong = exc
            nursery.cancel_scope.cancel()
    if wrong is not None:
        raise wrong


async def _handle_signals(
    signals: AsyncIterator[int], relay: Relay, nursery: trio.Nursery
) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            relay.reload()
        elif not relay.is_stopping:
            relay.stop()
        else:
            nursery.cancel_scope.cancel()


def _say_ready(relay: Relay) -> None:
    """The one line that says that all ports accept, for scripts to wait for."""
    if relay.settings.log_format is LogFormat.JSON:
        addresses = {name: list(where) for name, where in relay.addresses.items()}
        line = json.dumps(
            {"event": "ready", "switch": relay.switch.name, "addresses": addresses}
        )
    else:
        where = " ".join(
            f"{name}={f'[{host}]' if ':' in host else host}:{port}"
            for name, (host, port) in relay.addresses.items()
        )
        line = f"tailnet-relay ready {where} switch={relay.switch.name}"
    print(line, file=sys.stderr, flush=True)


def _configure_logging(log_format: LogFormat) -> None:
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format is LogFormat.JSON
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _log_unraisable(event: sys.UnraisableHookArgs) -> None:
    """Exceptions that nobody can catch go to the log, not to bare stderr.

    Any scanner can make one: a server name in TLS that is not ASCII.
    """
    log = structlog.get_logger("relay")
    note = log.debug if isinstance(event.exc_value, UnicodeError) else log.error
    note("unraisable exception", error=repr(event.exc_value), where=event.err_msg)


def _raise_descriptor_limit() -> None:
    """Take as many file descriptors as allowed, as Go programs do."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
