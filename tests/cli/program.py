"""The program ``tailnet``, run in this process on a data directory of its own."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
import trio
from click.testing import CliRunner

from relay.store.sql_store import SqlStore, open_store
from tailnet.cli.main import run

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Ran:
    """What a run of the program left."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Program:
    """Runs commands.

    Attributes:
        data_dir: Given to all of them, in the environment.
        environ: What else they find there; all of ours are gone.
    """

    data_dir: Path
    environ: dict[str, str | None] = field(default_factory=dict)

    def run(self, *args: str | Path, stdin: str = "") -> Ran:
        environ: dict[str, str | None] = {
            "XDG_CONFIG_HOME": str(self.data_dir.parent / "config"),
            "TAILNET_DATA_DIR": str(self.data_dir),
            "TAILNET_URL": None,
            "TAILNET_SESSION_TOKEN": None,
            "CODER_URL": None,
            "CODER_SESSION_TOKEN": None,
            **self.environ,
        }
        with CliRunner().isolation(input=stdin, env=environ) as (out, err, _):
            status = run([str(arg) for arg in args])
            return Ran(status, out.getvalue().decode(), err.getvalue().decode())

    def text(self, *args: str | Path) -> str:
        """The output of a command that must succeed."""
        ran = self.run(*args)
        assert ran.status == 0, ran.err
        return ran.out

    def json(self, *args: str | Path) -> Any:
        """The same as JSON, and nothing else may be printed."""
        ran = self.run(*args, "-o", "json")
        assert (ran.status, ran.err) == (0, "")
        return json.loads(ran.out)

    def error(self, *args: str | Path, status: int, stdin: str = "") -> str:
        """The one line of a command that must fail."""
        ran = self.run(*args, stdin=stdin)
        assert (ran.status, ran.out) == (status, ""), ran
        assert ran.err.endswith("\n")
        assert ran.err.count("\n") == 1, ran.err
        return ran.err[:-1]

    def on_store(self, work: Callable[[SqlStore], Awaitable[ResultT]]) -> ResultT:
        """Do something behind the program's back, as the server would."""

        async def main() -> ResultT:
            async with open_store(self.data_dir / "tailnet.db") as store:
                return await work(store)

        return trio.run(main)


@contextmanager
def usage_error() -> Iterator[list[str]]:
    """Catches the error of a wrong argument; its text is in the list then."""
    caught: list[str] = []
    try:
        yield caught
    except click.UsageError as exc:
        caught.append(exc.format_message())
    assert caught, "no error"
