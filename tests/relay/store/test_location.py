from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from relay.store.location import default_data_dir, prepare_data_dir
from tailnet.errors import ConfigError


def test_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    data_dir = tmp_path / "a" / "b"
    old = os.umask(0)
    try:
        assert prepare_data_dir(data_dir) == data_dir / "tailnet.db"
    finally:
        os.umask(old)
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert list(data_dir.iterdir()) == []
    # Another time, it is as it is.
    data_dir.chmod(0o750)
    prepare_data_dir(data_dir)
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o750


def test_places_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "dir", Path("a\0b")):
        with pytest.raises(ConfigError, match="choose another --data-dir"):
            prepare_data_dir(path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="cannot write"):
        prepare_data_dir(tmp_path)


def test_default_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/there")
    assert default_data_dir() == Path("/there/tailnet")
