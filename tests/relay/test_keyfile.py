from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from relay.keyfile import ROOT_KEY_FILE, find_key_file, load_or_create_key
from tailnet.errors import ConfigError

# The server key of the vectors in tests/derp.
HEX = "1011111111111111111111111111111111111111111111111111111111111151"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def message(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_or_create_key(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_new_file_is_as_derper_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "er" / "derper.key"
    made = load_or_create_key(path)
    assert made.created
    assert path.read_text() == (
        '{\n\t"PrivateKey": "' + made.private.to_text() + '"\n}'
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["derper.key"]  # no leftovers


def test_key_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "derper.key"
    made = load_or_create_key(path)
    again = load_or_create_key(path)
    assert again.private.to_text() == made.private.to_text()
    assert not again.created
    assert again.warning == ""


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_mode_is_0600_under_any_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        load_or_create_key(tmp_path / "derper.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "derper.key").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    [
        f'{{"PrivateKey":"privkey:{HEX}"}}',
        f'{{"privatekey":"privkey:{HEX.upper()}","Other":[1,{{}}]}}\n',
        f'{{"PrivateKey":"x","PRIVATEKEY":"privkey:{HEX}"}}',
    ],
)
def test_files_that_derper_takes(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "derper.key", text)
    assert load_or_create_key(path).private.to_text() == f"privkey:{HEX}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"PrivateKey":null}',
        '{"PrivateKey":7}',
        '{"PrivateKey":""}',
        f'{{"PrivateKey":"{HEX}"}}',
        f'{{"PrivateKey":"nodekey:{HEX}"}}',
        f'{{"PrivateKey":"privkey:{HEX[:-1]}"}}',
        '{"PrivateKey":"privkey:' + "0" * 64 + '"}',
        "[" * 100_000,
    ],
)
def test_broken_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "derper.key", text)
    assert HEX[:-1] not in message(path)  # never shows what may be a secret
    assert path.read_text() == text


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "derper.key"
    path.write_bytes(b'{"PrivateKey":"\xff\xfe"}')
    message(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_file_that_others_may_use_is_warned_about(tmp_path: Path, mode: int) -> None:
    text = json.dumps({"PrivateKey": f"privkey:{HEX}"})
    loaded = load_or_create_key(write(tmp_path / "derper.key", text, mode))
    assert f"{mode:04o}" in loaded.warning


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    assert "Is a directory" in message(tmp_path)
    write(tmp_path / "file", "")
    assert "Not a directory" in message(tmp_path / "file" / "derper.key")
    target = tmp_path / "link"
    target.symlink_to("/proc/nothing-can-be-made-here/derper.key")
    # The link is replaced by the file: rename does not follow it.
    assert load_or_create_key(target).created
    assert not target.is_symlink()


def test_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    assert "No space left on device" in message(tmp_path / "derper.key")
    assert os.listdir(tmp_path) == []


def test_where_the_key_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_key_file("x.key") == Path("x.key")
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert find_key_file("") == ROOT_KEY_FILE
    monkeypatch.setattr("os.getuid", lambda: 1000)
    with pytest.raises(ConfigError, match="-c"):
        find_key_file("")
