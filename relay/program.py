"""What the server programs have in common: logging, signals, the ready line.

``tailnet-relay`` and ``tailnet serve`` start, say that they are ready and
stop in the same way: SIGTERM or SIGINT stops gracefully, a second one ends at
once, SIGHUP reloads.
"""

from __future__ import annotations

import gc
import json
import logging
import re
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, TextIO, TypeVar

import structlog
import trio

from relay.config import LogFormat
from tailnet.errors import ConfigError

__all__ = (
    "MAX_LOGGED_LEN",
    "Program",
    "clean_values",
    "configure_logging",
    "prepare_process",
    "ready_line",
    "run_until_signal",
)

# Characters of one value in a log line.
MAX_LOGGED_LEN: Final = 512

# ASCII's and Unicode's control characters, line ends, and what reverses text.
_CONTROL: Final = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]"
)


class Program(Protocol):
    """A running server, as far as signals are concerned."""

    def stop(self) -> None:
        """Begin a graceful stop."""
        ...

    def reload(self) -> None:
        """Read again what may change under a running server."""
        ...

    async def wait_stopping(self) -> None:
        """Wait until a stop has begun."""
        ...


P = TypeVar("P", bound=Program)


async def run_until_signal(
    opened: AbstractAsyncContextManager[P], say_ready: Callable[[P], None]
) -> None:
    """Run a server until a signal ends it.

    Args:
        opened: Entering it starts the server, leaving it stops it gracefully.
        say_ready: Called when it has started.

    Raises:
        ConfigError: It could not start.
    """
    wrong: ConfigError | None = None
    with trio.open_signal_receiver(
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    ) as signals:
        async with trio.open_nursery() as nursery:
            try:
                async with opened as program:
                    # What lives now lives for ever: no need to collect it.
                    gc.collect()
                    gc.freeze()
                    nursery.start_soon(_handle_signals, signals, program, nursery)
                    say_ready(program)
                    await program.wait_stopping()
            except ConfigError as exc:
                wrong = exc
            except BaseExceptionGroup as group:
                # It came through nurseries of the server on its way out.
                wrong = _only_config_error(group)
                if wrong is None:
                    raise
            nursery.cancel_scope.cancel()
    if wrong is not None:
        raise wrong


def _only_config_error(group: BaseExceptionGroup[BaseException]) -> ConfigError | None:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner if isinstance(inner, ConfigError) else None


async def _handle_signals(
    signals: AsyncIterator[int], program: Program, nursery: trio.Nursery
) -> None:
    is_stopping = False
    async for number in signals:
        if number == signal.SIGHUP:
            program.reload()
        elif not is_stopping:
            is_stopping = True
            program.stop()
        else:
            nursery.cancel_scope.cancel()


def ready_line(
    name: str,
    addresses: Mapping[str, tuple[str, int]],
    log_format: LogFormat,
    **facts: str,
) -> str:
    """The one line that says that all ports accept, for scripts to wait for.

    Args:
        name: Of the program.
        addresses: What it listens on, by name.
        log_format: Text, or a JSON object with ``"event": "ready"``.
        facts: More to tell, at the end of the line.
    """
    if log_format is LogFormat.JSON:
        listed = {key: list(where) for key, where in addresses.items()}
        return json.dumps({"event": "ready", **facts, "addresses": listed})
    where = [
        f"{key}={f'[{host}]' if ':' in host else host}:{port}"
        for key, (host, port) in addresses.items()
    ]
    told = [f"{key}={value}" for key, value in facts.items()]
    return " ".join([f"{name} ready", *where, *told])


def configure_logging(log_format: LogFormat) -> None:
    """Log to stderr, in the format of the settings."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format is LogFormat.JSON
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            clean_values,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *args: _StderrLogger(sys.stderr),
        cache_logger_on_first_use=True,
    )


def clean_values(
    logger: object, name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """A structlog processor: what peers say ends up in logs short and harmless.

    A path with an escape sequence in it would talk to the terminal that shows
    the text format.
    """
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _clean(value)
    return event


def _clean(text: str) -> str:
    if len(text) > MAX_LOGGED_LEN:
        text = f"{text[:MAX_LOGGED_LEN]}... ({len(text)} characters)"
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


class _StderrLogger:
    """Writes lines. Nobody's connection ends because a log cannot be written."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def msg(self, message: str) -> None:
        """Write a line, if there is room for it."""
        try:
            self._file.write(f"{message}\n")
            self._file.flush()
        except (OSError, ValueError):  # a full disk, no reader; closed
            pass

    def __getattr__(self, level: str) -> Any:
        return self.msg


def prepare_process() -> None:
    """Set this process up to be a server, before trio runs."""
    # As many file descriptors as allowed, as Go programs do.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.unraisablehook = _log_unraisable


def _log_unraisable(event: sys.UnraisableHookArgs) -> None:
    """Exceptions that nobody can catch go to the log, not to bare stderr.

    Any scanner can make one: a server name in TLS that is not ASCII.
    """
    log = structlog.get_logger("relay")
    note = log.debug if isinstance(event.exc_value, UnicodeError) else log.error
    note("unraisable exception", error=repr(event.exc_value), where=event.err_msg)
