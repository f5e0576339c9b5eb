from __future__ import annotations

import enum
from pathlib import Path

import pytest

from relay.flags import Flag, Kind
from relay.given import Given
from tailnet.errors import ConfigError

FLAGS = (
    Flag("config", Kind.STRING, "", ""),
    Flag("name", Kind.STRING, "nobody", ""),
    Flag("names", Kind.LIST, "", ""),
    Flag("on", Kind.BOOL, False, ""),
    Flag("count", Kind.INT, 3, ""),
    Flag("time", Kind.DURATION, 1.0, ""),
)


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


def given(file: Path | None = None, /, **texts: str) -> Given:
    made = Given(FLAGS, dashes="--")
    for name, text in texts.items():
        made.take_text(name, text, f"flag --{name}")
    if file is not None:
        made.take_text("config", str(file), "flag --config")
        made.take_file(str(file))
    return made


def message(made: Given, file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        made.take_file(str(file))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults() -> None:
    made = given()
    assert made.text("name") == "nobody"
    assert made.items("names") == ()
    assert made.flag("on") is False
    assert made.integer("count") == 3
    assert made.seconds("time") == 1.0
    assert not made.is_given("name")


def test_file_is_beaten_by_what_was_given_before(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('name = "file"\ncount = 5\non = true\nnames = ["a", "b"]\n')
    made = given(file, name="flag")
    assert made.text("name") == "flag"
    assert made.integer("count") == 5
    assert made.flag("on") is True
    assert made.items("names") == ("a", "b")
    assert made.is_given("count")
    assert not made.is_given("time")


@pytest.mark.parametrize(
    ("text", "items"),
    [("", ()), ("a", ("a",)), ("a,b", ("a", "b")), (" a , ,b,", ("a", "b"))],
)
def test_items(text: str, items: tuple[str, ...]) -> None:
    assert given(names=text).items("names") == items


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("nothing = 1", "nothing"),
        ('config = "x"', "config"),
        ("count = true", "count"),
        ('count = "x"', "count"),
        ("on = 1", "on"),
        ("names = [1]", "names"),
        ('name = ["a"]', "name"),
        ("name", "TOML"),
    ],
)
def test_wrong_file(tmp_path: Path, content: str, word: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(content)
    made = given(config=str(file))
    text = message(made, file)
    assert word in text
    assert str(file) in text


def test_file_that_is_not_there(tmp_path: Path) -> None:
    made = given(config="x")
    assert "flag --config" in message(made, tmp_path / "none")


def test_messages_name_the_source() -> None:
    made = given(count="7", time="-1s", name="green")
    for wrong, word in (
        (lambda: made.integer("count", 0, 5), 'invalid value "7" for flag --count'),
        (lambda: made.seconds("time"), "flag --time"),
        (lambda: made.choice("name", Colour), "red, blue"),
    ):
        with pytest.raises(ConfigError, match=word):
            wrong()
    # What comes from the default is told by the flag.
    assert "for flag --names:" in str(made.error("names", "no"))
    with pytest.raises(ConfigError, match="for here"):
        made.take_text("on", "maybe", "here")


def test_choice() -> None:
    assert Colour(given(name="blue").choice("name", Colour)) is Colour.BLUE
