"""Settings as they were given: by command line, environment and file.

A value is read as soon as it is met, and remembers where it came from, so
that a message can say which of the sources is wrong.

API: :class:`Given`. Every method raises ConfigError with one line.
"""

from __future__ import annotations

import enum
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from relay.flags import Flag, Kind, Value, parse_value, quote
from tailnet.errors import ConfigError

__all__ = ("MAX_INT", "Given")

MAX_INT: Final = (1 << 63) - 1  # Go's math.MaxInt


class Given:
    """Values by name, the first source that has one winning.

    Args:
        flags: Those that exist; ``config`` and ``version`` are no keys of a
            file.
        dashes: Before a flag's name, in messages.
    """

    def __init__(self, flags: Iterable[Flag], *, dashes: str) -> None:
        self._by_name = {flag.name: flag for flag in flags}
        self._dashes = dashes
        self._values: dict[str, Value] = {}
        self._texts: dict[str, str] = {}
        self._sources: dict[str, str] = {}

    def take_text(self, name: str, text: str, source: str) -> None:
        """Take one value.

        Args:
            name: Of the flag.
            text: As it was written.
            source: Where, for messages.
        """
        try:
            value = parse_value(self._by_name[name].kind, text)
        except ConfigError as exc:
            raise ConfigError(
                f"invalid value {quote(text)} for {source}: {exc}"
            ) from None
        self._values[name] = value
        self._texts[name] = text
        self._sources[name] = source

    def take_file(self, path: str) -> None:
        """Take from a TOML file what has not been given yet."""
        source = self._sources["config"]
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError(
                f"{source}: cannot read {quote(path)}: {exc.strerror}"
            ) from exc
        except ValueError as exc:  # no TOML, no UTF-8, or a NUL in the path
            raise ConfigError(f"{quote(path)} is no TOML file: {exc}") from exc
        for key, value in table.items():
            flag = self._by_name.get(key)
            if flag is None or key in ("config", "version"):
                raise ConfigError(f"{quote(path)}: there is no setting {key!r}")
            if key in self._values:
                continue  # still checked for its name, beaten for its value
            self._take_toml(flag, value, f"{key} in {path}")

    def _take_toml(self, flag: Flag, value: object, source: str) -> None:
        match flag.kind, value:
            case (_, str()):
                # "10m" and "2MiB", but also "false": a file made by a
                # template has quotes everywhere.
                self.take_text(flag.name, value, source)
            case (Kind.BOOL, bool()):
                self.take_text(flag.name, str(value), source)
            case (Kind.INT | Kind.SIZE | Kind.FLOAT, int() | float()) if not isinstance(
                value, bool
            ):
                self.take_text(flag.name, str(value), source)
            case (Kind.LIST, list()) if all(isinstance(v, str) for v in value):
                self.take_text(flag.name, ",".join(value), source)
            case _:
                wanted = flag.kind.value or "true or false"
                raise ConfigError(f"invalid value {value!r} for {source}: no {wanted}")

    def is_given(self, name: str) -> bool:
        """Whether any source has it."""
        return name in self._values

    def get(self, name: str) -> Value:
        """The value, or the default."""
        return self._values.get(name, self._by_name[name].default)

    def flag(self, name: str) -> bool:
        return bool(self.get(name))

    def text(self, name: str) -> str:
        return str(self.get(name))

    def items(self, name: str) -> tuple[str, ...]:
        """The items of a list; empty ones do not count."""
        parts = (part.strip() for part in self.text(name).split(","))
        return tuple(part for part in parts if part)

    def integer(self, name: str, low: int = 0, high: int = MAX_INT) -> int:
        """A number within bounds."""
        value = int(self.get(name))
        if not low <= value <= high:
            raise self.error(name, f"not within {low} and {high}")
        return value

    def seconds(self, name: str) -> float:
        """A duration that is not negative."""
        value = float(self.get(name))
        if value < 0:
            raise self.error(name, "a negative time")
        return value

    def error(self, name: str, reason: str) -> ConfigError:
        """What to raise when a value cannot be used."""
        source = self._sources.get(name, f"flag {self._dashes}{name}")
        text = self._texts.get(name, str(self.get(name)))
        return ConfigError(f"invalid value {quote(text)} for {source}: {reason}")

    def choice(self, name: str, choices: type[enum.StrEnum]) -> str:
        """One of the values of an enum."""
        text = self.text(name)
        if text not in list(choices):
            raise self.error(name, f"one of {', '.join(choices)} is wanted")
        return text
