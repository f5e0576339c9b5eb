from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tailnet.cli import main as main_module
from tailnet.cli.command import Command
from tailnet.cli.main import cli, main, run
from tailnet.errors import ConfigError, NotFoundError
from tests.cli.program import Program

CHOICES = "'text', 'json'"


def test_help_of_every_command(program: Program) -> None:
    def walk(command: click.Command, *path: str) -> None:
        text = program.text(*path, "-h")
        assert text == program.text(*path, "--help")
        assert text.startswith(f"Usage: {' '.join(('tailnet', *path))} ")
        assert command.help
        if isinstance(command, click.Group):
            assert isinstance(command, Command)
            for name, inner in command.commands.items():
                walk(inner, *path, name)

    walk(cli)


def test_version(program: Program) -> None:
    assert program.text("--version").startswith("tailnet, version ")


@pytest.mark.parametrize("args", [(), ("user",), ("agent",)])
def test_family_without_a_command_shows_its_help(
    program: Program, args: tuple[str, ...]
) -> None:
    ran = program.run(*args)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"Usage: {' '.join(('tailnet', *args))} ")


def test_wrong_usage_is_one_line(program: Program) -> None:
    for args, where, text in (
        (("bogus",), "tailnet", "No such command 'bogus'; see"),
        (
            ("user", "creat"),
            "tailnet user",
            "No such command 'creat'. Did you mean 'create'? See",
        ),
        (("user", "create"), "tailnet user create", "Missing argument 'NAME'; see"),
        (
            ("user", "list", "-o", "xml"),
            "tailnet user list",
            f"Invalid value for '-o' / '--output': 'xml' is not one of {CHOICES}; see",
        ),
    ):
        assert program.error(*args, status=2) == f"{where}: {text} {where} --help"


def test_verbose_shows_where_an_error_comes_from(furnished: Program) -> None:
    for args in (
        ("--verbose", "user", "show", "bob"),
        ("user", "--verbose", "show", "bob"),
        ("user", "show", "bob", "--verbose"),
    ):
        ran = furnished.run(*args)
        assert ran.status == 1
        lines = ran.err.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1].startswith("tailnet: there is no user 'bob'")


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (NotFoundError("nothing here"), 1),
        (ConfigError("nothing here"), 2),
        (click.ClickException("nothing here"), 1),
    ],
)
def test_errors_and_their_status(
    monkeypatch: pytest.MonkeyPatch, program: Program, raised: Exception, status: int
) -> None:
    def fail() -> None:
        raise raised

    command = Command("fail", callback=fail)
    monkeypatch.setitem(cli.commands, "fail", command)
    assert program.error("fail", status=status) == "tailnet: nothing here"


@pytest.mark.parametrize("raised", [KeyboardInterrupt, click.Abort])
def test_interrupted(
    monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    def interrupt() -> None:
        raise raised

    monkeypatch.setitem(cli.commands, "fail", Command("fail", callback=interrupt))
    assert run(["fail"]) == 130


def test_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.commands, "fail", Command("fail", callback=fail))
    with pytest.raises(ZeroDivisionError):
        run(["fail"])


def test_main_exits_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tailnet", "bogus"])
    with pytest.raises(SystemExit) as exc:
        main()
    assert exc.value.code == 2
    assert main_module.run(["--version"]) == 0


def subprocess_run(
    data_dir: Path, *args: str, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-m", "tailnet", *args],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TAILNET_DATA_DIR": str(data_dir)},
    )


def test_real_program(tmp_path: Path) -> None:
    """Warnings are errors here too: nothing is left open or unawaited."""
    made = subprocess_run(tmp_path, "user", "create", "alice", "-o", "json")
    assert (made.returncode, made.stderr) == (0, "")
    assert json.loads(made.stdout)["username"] == "alice"
    again = subprocess_run(tmp_path, "user", "create", "alice")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "tailnet: there is a user 'alice' already\n"
    wrong = subprocess_run(tmp_path, "user", "create")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_reader_that_has_enough(tmp_path: Path) -> None:
    """As in ``tailnet user list | head -1``."""
    subprocess_run(tmp_path, "user", "create", "alice")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ran = subprocess_run(tmp_path, "user", "list", stdout=writer)
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, "")
