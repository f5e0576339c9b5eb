from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from relay.flags import (
    Flag,
    Kind,
    format_duration,
    parse_arguments,
    parse_duration,
    parse_value,
    usage_text,
)
from tailnet.errors import ConfigError

FLAGS = (
    Flag("stun", Kind.BOOL, True, "serve STUN"),
    Flag("a", Kind.STRING, ":443", "address"),
    Flag("http-port", Kind.INT, 80, "port"),
    Flag("wait", Kind.DURATION, 600.0, "time"),
    Flag("limit", Kind.FLOAT, math.inf, "rate"),
    Flag("mesh", Kind.STRING, "", "hosts", missing="not there"),
)


def test_both_dashes_and_both_ways_to_give_a_value() -> None:
    arguments = parse_arguments(
        FLAGS, ["-a", ":1", "--http-port=-1", "--wait", "-5s", "-stun"]
    )
    assert arguments.texts == {
        "a": ":1",
        "http-port": "-1",
        "wait": "-5s",
        "stun": "true",
    }
    assert arguments.rest == []


def test_value_may_hold_an_equals_sign_and_be_empty() -> None:
    assert parse_arguments(FLAGS, ["-a=x=y"]).texts == {"a": "x=y"}
    assert parse_arguments(FLAGS, ["-a="]).texts == {"a": ""}
    assert parse_arguments(FLAGS, ["-a", ""]).texts == {"a": ""}


def test_last_one_wins() -> None:
    assert parse_arguments(FLAGS, ["-a", "1", "-a", "2"]).texts == {"a": "2"}


@pytest.mark.parametrize("end", ["--", "x", "-", ""])
def test_flags_end(end: str) -> None:
    arguments = parse_arguments(FLAGS, ["-stun", end, "-a", "1"])
    assert arguments.texts == {"stun": "true"}
    assert list(arguments.rest) == (["-a", "1"] if end == "--" else [end, "-a", "1"])


def test_boolean_does_not_take_the_next_argument() -> None:
    arguments = parse_arguments(FLAGS, ["-stun", "false", "-a", "1"])
    assert arguments.texts == {"stun": "true"}
    assert arguments.rest == ["false", "-a", "1"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-nope"], "flag provided but not defined: -nope"),
        (["--nope=1"], "flag provided but not defined: -nope"),
        (["-a"], "flag needs an argument: -a"),
        (["---a"], "bad flag syntax: ---a"),
        (["-=a"], "bad flag syntax: -=a"),
        (["--=a"], "bad flag syntax: --=a"),
    ],
)
def test_mistakes_have_the_words_of_go(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_arguments(FLAGS, argv)
    assert str(caught.value) == message


@pytest.mark.parametrize("flag", ["-h", "--help", "-help=x"])
def test_help_stops_reading(flag: str) -> None:
    assert parse_arguments(FLAGS, ["-a", "1", flag, "-nope"]).wants_help
    with pytest.raises(ConfigError):
        parse_arguments(FLAGS, ["-nope", flag])


# Results of Go's strconv.ParseBool, ParseInt(s, 0, 64), ParseFloat and
# time.ParseDuration.
@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Kind.BOOL, "T", True),
        (Kind.BOOL, "0", False),
        (Kind.INT, "0x1F", 31),
        (Kind.INT, "-0b11", -3),
        (Kind.INT, "010", 8),
        (Kind.INT, "0o10", 8),
        (Kind.INT, "1_000", 1000),
        (Kind.INT, "0x_10", 16),
        (Kind.INT, "+7", 7),
        (Kind.INT, "0", 0),
        (Kind.INT, "-9223372036854775808", -(1 << 63)),
        (Kind.FLOAT, "+Inf", math.inf),
        (Kind.FLOAT, "1e3", 1000.0),
        (Kind.FLOAT, ".5", 0.5),
        (Kind.DURATION, "0", 0.0),
        (Kind.DURATION, "1h2m3.5s", 3723.5),
        (Kind.DURATION, "-1.5m", -90.0),
        (Kind.DURATION, "+5s", 5.0),
        (Kind.DURATION, "100ms", 0.1),
        (Kind.DURATION, "2\u00b5s", 2e-6),
        (Kind.DURATION, ".5s", 0.5),
        (Kind.DURATION, "1.s", 1.0),
        (Kind.STRING, " as it is ", " as it is "),
        (Kind.SIZE, "4096", 4096),
        (Kind.SIZE, "2MiB", 2 << 20),
        (Kind.SIZE, "16 KiB", 16 << 10),
    ],
)
def test_values(kind: Kind, text: str, value: object) -> None:
    assert parse_value(kind, text) == value


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (Kind.BOOL, ["", "yes", "tRUE", "2"]),
        (
            Kind.INT,
            ["", " 1", "1.0", "0x", "08", "1__0", "_1", "1_", "\u0661", "9" * 19],
        ),
        (Kind.FLOAT, ["", " 1", "1_0", "\u0661", "x"]),
        (
            Kind.DURATION,
            ["", "-", "5", "s", ".s", "1x", "1 s", "1s ", "--1s", "1m2", "2600000h"],
        ),
        (Kind.SIZE, ["", "2MB", "MiB", "1.5MiB"]),
    ],
)
def test_bad_values(kind: Kind, texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(ConfigError):
            parse_value(kind, text)


@given(text=st.text(max_size=20), kind=st.sampled_from(Kind))
def test_any_text_has_a_value_or_a_reason(text: str, kind: Kind) -> None:
    try:
        parse_value(kind, text)
    except ConfigError as exc:
        assert "\n" not in str(exc)  # noqa: PT017


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (600.0, "10m0s"),
        (15.0, "15s"),
        (3723.5, "1h2m3.5s"),
        (3600.0, "1h0m0s"),
        (0.25, "250ms"),
        (2e-6, "2\u00b5s"),
        (-1.5, "-1.5s"),
    ],
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
    assert parse_duration(text) == pytest.approx(seconds)


def test_usage_is_sorted_and_shows_defaults() -> None:
    assert usage_text("relay", FLAGS) == (
        "Usage of relay:\n"
        '  -a string\n    \taddress (default ":443")\n'
        "  -http-port int\n    \tport (default 80)\n"
        "  -limit float\n    \trate (default +Inf)\n"
        "  -mesh string\n    \thosts [not available yet]\n"
        "  -stun\n    \tserve STUN (default true)\n"
        "  -wait duration\n    \ttime (default 10m0s)\n"
    )
