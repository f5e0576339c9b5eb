"""What a server of ours says of itself, and what the kernel says of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from tests.interop.coder.servers import Json, Server
from tests.interop.programs import clean_environment, run_program
from tests.interop.relay_program import Counters
from tests.interop.tools import find_debian_tool, needs

__all__ = ("Inside", "Usage", "ask", "open_inside")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds.

    Attributes:
        sockets: All of them, listening ones too.
        descriptors: All of them.
        memory: Resident bytes.
    """

    sockets: int
    descriptors: int
    memory: int

    @classmethod
    def of(cls, pid: int) -> Self:
        folder = Path(f"/proc/{pid}/fd")
        links = []
        for name in os.listdir(folder):
            try:
                links.append(os.readlink(folder / name))
            except FileNotFoundError:
                pass  # closed since
        sockets = sum(link.startswith("socket:") for link in links)
        return cls(sockets, len(links), int(psutil.Process(pid).memory_info().rss))


@dataclass(slots=True)
class Inside:
    """An admin of a server, on its own machine."""

    server: Server
    folder: Path
    wrapper: Sequence[str | Path]
    token: str

    async def coordinator(self) -> Json:
        """``/api/v2/debug/coordinator``."""
        status, body = await ask(
            f"{self.server.url}/api/v2/debug/coordinator",
            *("-H", f"Coder-Session-Token: {self.token}"),
            *("-H", "Accept: application/json"),
            folder=self.folder,
            wrapper=self.wrapper,
        )
        assert status == 200, body
        found: Json = json.loads(body)
        return found

    async def peers(self, status: str = "ok") -> set[str]:
        """Ids of the coordinator's peers that are ``ok``, or ``lost``."""
        view = await self.coordinator()
        return {peer["id"] for peer in view["peers"] if peer["status"] == status}

    async def counters(self) -> Counters:
        """``/debug/varz``; the server has to listen on loopback as well."""
        port = self.server.url.rpartition(":")[2]
        status, body = await ask(
            f"{self.server.url.partition(':')[0]}://127.0.0.1:{port}/debug/varz",
            "--insecure",
            folder=self.folder,
            wrapper=self.wrapper,
        )
        assert status == 200, body
        return Counters.parse(body.decode())


async def open_inside(
    server: Server, folder: Path, *, wrapper: Sequence[str | Path] = ()
) -> Inside:
    """Make an admin of a server of ours.

    Args:
        server: Which.
        folder: For what is asked.
        wrapper: A command that runs others on the server's machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (made,) = await server.operate(("user", "create", "boss", "--admin"))
    return Inside(server, folder, wrapper, made["token"])


async def ask(
    url: str, *arguments: str, folder: Path, wrapper: Sequence[str | Path] = ()
) -> tuple[int, bytes]:
    """Ask a web server with curl; returns status and body.

    Args:
        url: What to ask for.
        arguments: More of curl's.
        folder: An existing one, for the output.
        wrapper: A command that runs it, such as ``ip netns exec``.
    """
    done = await run_program(
        *wrapper,
        needs(find_debian_tool, "curl"),
        *("--silent", "--show-error", "--max-time", "10"),
        *("--write-out", "\n%{http_code}"),
        *arguments,
        url,
        folder=folder,
        timeout=20,
        env=clean_environment(folder / "home"),
    )
    assert done.returncode == 0, done.log
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body
