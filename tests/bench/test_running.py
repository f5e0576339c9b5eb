"""A run against a real relay, with load generators that misbehave."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from bench.figures import Side
from bench.running import LoaderError, NoCargoError, Tools, build_loader, run_once
from tests.bench.results import scenario
from tests.interop.tools import find_coder_program, needs


def make_loader(folder: Path, script: str) -> Tools:
    loader = folder / "loader"
    loader.write_text(f"#!/bin/sh\n{script}\n")
    loader.chmod(0o755)
    return Tools(loader, None, None)


@pytest.mark.interop
async def test_the_result_and_the_arguments(tmp_path: Path) -> None:
    # The relay's process is there while the load generator runs.
    script = (
        'for last; do :; done; kill -0 "$last" || exit 9\n'
        f'echo "$@" > {tmp_path}/arguments; echo "{{\\"corrupt\\": 0}}"'
    )
    tools = make_loader(tmp_path, script)
    run = await run_once(scenario("plain-sparse"), Side.OURS, 2, tools, quick=True)
    assert (run.scenario, run.side, run.repetition) == ("plain-sparse", "ours", 2)
    assert (run.result, run.error) == ({"corrupt": 0}, "")
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:5] == ["sparse", "--size", "64", "--rate", "1000"]
    assert "--cpu" not in arguments


@pytest.mark.interop
@pytest.mark.parametrize(
    ("script", "error"),
    [
        (
            "echo it broke >&2; exit 1",
            "it broke (status 1); the last words of relay (ours)",
        ),
        ("echo nonsense", "the load generator's answer: Expecting value"),
    ],
)
async def test_a_failure_is_an_error_in_the_run(
    tmp_path: Path, script: str, error: str
) -> None:
    tools = make_loader(tmp_path, script)
    run = await run_once(scenario("plain-sparse"), Side.OURS, 1, tools, quick=True)
    assert run.result is None
    assert error in run.error


@pytest.mark.interop
@pytest.mark.parametrize("side", [Side.OURS, Side.CODER])
async def test_a_coordinator_with_an_agent_and_a_user(
    tmp_path: Path, side: Side
) -> None:
    if side is Side.CODER:
        needs(find_coder_program, "coderserver")
    script = (
        'for last; do :; done; kill -0 "$last" || exit 9\n'
        f'echo "$@" > {tmp_path}/arguments; echo "{{}}"'
    )
    tools = make_loader(tmp_path, script)
    run = await run_once(scenario("coord-200"), side, 1, tools, quick=True)
    assert (run.result, run.error) == ({}, "")
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[:5] == ["crowd", "--clients", "200", "--updates", "60"]
    given = dict(zip(arguments[5::2], arguments[6::2], strict=True))
    UUID(given["--agent-id"])
    UUID(given["--agent-token"])
    assert len(given["--user-token"]) == 33


def test_without_cargo_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.running.SYSTEM_PATH", str(tmp_path))
    monkeypatch.setenv("CARGO_HOME", str(tmp_path))
    with pytest.raises(NoCargoError, match="install Rust"):
        build_loader()


def test_a_crate_that_does_not_build_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cargo = tmp_path / "cargo"
    cargo.write_text("#!/bin/sh\necho 'error: no such crate' >&2; exit 101\n")
    cargo.chmod(0o755)
    monkeypatch.setattr("bench.running.SYSTEM_PATH", str(tmp_path))
    with pytest.raises(LoaderError, match="error: no such crate") as caught:
        build_loader()
    assert not isinstance(caught.value, NoCargoError)
