"""Command lines as Go's ``flag`` package reads them, and its values.

A program that takes derper's place takes its command line as it stands, so
the rules are those of Go (``flag/flag.go``, ``FlagSet.parseOne``):

- one or two dashes, ``-flag=value`` or ``-flag value``;
- a boolean flag stands alone or has its value after ``=``, never as the next
  argument;
- the first argument that is no flag ends the flags, and so does ``--``.

Everything here is a pure function of its arguments and raises ConfigError
with one line, worded as Go words it.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tailnet.errors import ConfigError

__all__ = (
    "Arguments",
    "Flag",
    "Kind",
    "Value",
    "format_default",
    "format_duration",
    "parse_arguments",
    "parse_duration",
    "parse_value",
    "quote",
    "usage_text",
)

Value = bool | int | float | str


class Kind(enum.Enum):
    """What a flag holds; the value is the word that usage shows for it."""

    BOOL = ""
    INT = "int"
    FLOAT = "float"
    DURATION = "duration"
    STRING = "string"
    SIZE = "size"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting.

    Attributes:
        name: Without dashes.
        kind: What it holds. A duration is a float of seconds, a size an int
            of bytes, a list a text with commas.
        default: What it holds when it is not set.
        usage: One sentence for ``-help``.
        missing: Empty, or why a value other than the default is refused.
    """

    name: str
    kind: Kind
    default: Value
    usage: str
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line taken apart.

    Attributes:
        texts: The text given for each flag that is there; the last one wins.
        rest: What follows the flags.
        wants_help: ``-h`` or ``-help`` was met, and nothing after it was read.
    """

    texts: Mapping[str, str]
    rest: Sequence[str] = ()
    wants_help: bool = False


def parse_arguments(flags: Iterable[Flag], argv: Sequence[str]) -> Arguments:
    """Take a command line apart.

    Args:
        flags: Those that exist.
        argv: The arguments, without the name of the program.

    Raises:
        ConfigError: An unknown flag, or one without its value.
    """
    known = {flag.name: flag for flag in flags}
    texts: dict[str, str] = {}
    rest = list(argv)
    while rest:
        argument = rest[0]
        if len(argument) < 2 or argument[0] != "-":
            break
        del rest[0]
        if argument == "--":
            break
        name = argument[2:] if argument.startswith("--") else argument[1:]
        if name[0] in "-=":
            raise ConfigError(f"bad flag syntax: {_printable(argument)}")
        name, equals, text = name.partition("=")
        flag = known.get(name)
        if flag is None:
            if name in ("h", "help"):
                return Arguments(texts, rest, wants_help=True)
            raise ConfigError(f"flag provided but not defined: -{_printable(name)}")
        if not equals:
            if flag.kind is Kind.BOOL:
                text = "true"
            elif rest:
                text = rest.pop(0)
            else:
                raise ConfigError(f"flag needs an argument: -{name}")
        texts[name] = text
    return Arguments(texts, rest)


def _printable(text: str) -> str:
    """A text that cannot break the one line of an error."""
    return text if text.isprintable() else quote(text)[1:-1]


def quote(text: str) -> str:
    """A text within double quotes, on one line (Go's ``%q``)."""
    if text.isprintable():
        return f'"{text}"'
    return json.dumps(text)


def parse_value(kind: Kind, text: str) -> Value:
    """Read the text of a value as Go reads it.

    Raises:
        ConfigError: It is none of that kind; the message is Go's reason
            alone, without flag and value.
    """
    match kind:
        case Kind.BOOL:
            return _parse_bool(text)
        case Kind.INT:
            return _parse_int(text)
        case Kind.FLOAT:
            return _parse_float(text)
        case Kind.DURATION:
            return parse_duration(text)
        case Kind.SIZE:
            return _parse_size(text)
        case Kind.STRING | Kind.LIST:
            return text


def _parse_bool(text: str) -> bool:
    # strconv.ParseBool
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ConfigError("parse error")


_INT = re.compile(
    r"(?P<sign>[+-]?)(?:0[xX](?P<hex>[0-9a-fA-F_]+)|0[bB](?P<bin>[01_]+)"
    r"|0[oO]?(?P<oct>[0-7_]+)|(?P<dec>0|[1-9][0-9_]*))",
    re.ASCII,
)
_BASES: Final = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}


def _parse_int(text: str) -> int:
    # strconv.ParseInt with base 0: 0x, 0b, 0o and a leading 0 are prefixes.
    match = _INT.fullmatch(text)
    if match is None:
        raise ConfigError("parse error")
    base = str(match.lastgroup)
    try:
        number = int(match["sign"] + match[base].removeprefix("_"), _BASES[base])
    except ValueError:  # underscores in odd places
        raise ConfigError("parse error") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise ConfigError("value out of range")
    return number


def _parse_float(text: str) -> float:
    # Python reads white space, underscores and non-ASCII digits, Go does not.
    if re.fullmatch(r"[0-9A-Za-z.+-]+", text, re.ASCII):
        try:
            return float(text)
        except ValueError:
            pass
    raise ConfigError("parse error")


_SIZE_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _parse_size(text: str) -> int:
    unit = _SIZE_UNITS.get(text[-3:], 1)
    return _parse_int(text if unit == 1 else text[:-3].rstrip()) * unit


_NANOSECONDS: Final = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")


def parse_duration(text: str) -> float:
    """Read a duration as Go's ``time.ParseDuration`` does, like ``1h2m3.5s``.

    Returns:
        Seconds.

    Raises:
        ConfigError: No duration, a number without unit, or over 292 years.
    """
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0.0
    if not rest:
        raise ConfigError("parse error")
    total = 0
    while rest:
        match = _DURATION_PART.match(rest)
        if match is None or not (match[1] or match[2]):
            raise ConfigError("parse error")
        nanoseconds = _NANOSECONDS.get(match[3])
        if nanoseconds is None:
            what = f"unknown unit {match[3]!r}" if match[3] else "missing unit"
            raise ConfigError(f"{what} in duration")
        total += int(match[1] or "0") * nanoseconds
        fraction = match[2] or ""
        total += int(fraction or "0") * nanoseconds // 10 ** len(fraction)
        rest = rest[match.end() :]
    if total >= 1 << 63:
        raise ConfigError("value out of range")
    return (-total if text[0] == "-" else total) / 1e9


def format_duration(seconds: float) -> str:
    """Write a duration as Go's ``Duration.String`` does, like ``10m0s``.

    Args:
        seconds: Its length. Below one second, Go's smaller units are used.
    """
    nanoseconds = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 else ""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 1_000_000_000:
        for unit in ("ms", "\u00b5s", "ns"):
            if nanoseconds >= (size := _NANOSECONDS[unit]):
                return f"{sign}{_decimal(nanoseconds, size)}{unit}"
    minutes, below = divmod(nanoseconds, _NANOSECONDS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(below, _NANOSECONDS['s'])}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    if hours:
        text = f"{hours}h{text}"
    return sign + text


def _decimal(number: int, unit: int) -> str:
    whole, fraction = divmod(number, unit)
    digits = str(fraction).zfill(len(str(unit)) - 1).rstrip("0")
    return f"{whole}.{digits}" if fraction else str(whole)


def usage_text(program: str, flags: Iterable[Flag]) -> str:
    """What ``-help`` prints, laid out as Go's ``PrintDefaults`` does."""
    lines = [f"Usage of {program}:"]
    for flag in sorted(flags, key=lambda flag: flag.name):
        head = f"  -{flag.name}"
        if flag.kind is not Kind.BOOL:
            head += f" {flag.kind.value}"
        text = flag.usage
        if default := format_default(flag):
            text += f" (default {default})"
        if flag.missing:
            text += " [not available yet]"
        lines += [head, f"    \t{text}"]
    return "\n".join(lines) + "\n"


def format_default(flag: Flag) -> str:
    """A default as usage shows it; empty if it goes without saying."""
    if flag.default in (False, 0, ""):
        return ""
    return _show(flag.kind, flag.default)


def _show(kind: Kind, value: Value) -> str:
    if kind in (Kind.STRING, Kind.LIST):
        return f'"{value}"'
    if kind is Kind.BOOL:
        return "true" if value else "false"
    if kind is Kind.DURATION:
        return format_duration(float(value))
    if kind is Kind.FLOAT and math.isinf(float(value)):
        return "+Inf"
    return str(value)
