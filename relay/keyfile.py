"""The file with the relay's private key, in derper's format.

derper calls it its config file (``cmd/derper/derper.go``, ``loadConfig``):
JSON with one field, ``{"PrivateKey": "privkey:<hex>"}``. It must outlive
restarts: clients and other relays know a relay by its key.

API: :func:`find_key_file`, then :func:`load_or_create_key`.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tailnet.errors import ConfigError, KeyFormatError
from tailnet.keys import NodePrivate

__all__ = (
    "ROOT_KEY_FILE",
    "LoadedKey",
    "find_key_file",
    "load_or_create_key",
    "write_atomically",
)

# What derper uses when root runs it without -c.
ROOT_KEY_FILE: Final = Path("/var/lib/derper/derper.key")


@dataclass(frozen=True, slots=True)
class LoadedKey:
    """The key, and how it came about.

    Attributes:
        private: The relay's key.
        created: The file was not there and has been made.
        warning: A line for the log, or empty.
    """

    private: NodePrivate
    created: bool = False
    warning: str = ""


def find_key_file(key_file: str) -> Path:
    """Where the key is, by derper's rule.

    Args:
        key_file: The value of ``-c``, maybe empty.

    Raises:
        ConfigError: ``-c`` was not given, and we are not root.
    """
    if key_file:
        return Path(key_file)
    if os.getuid() == 0:
        return ROOT_KEY_FILE
    raise ConfigError("-c <file> is not given: where is the key of the relay?")


def load_or_create_key(path: Path) -> LoadedKey:
    """Read the key, or make a new one if there is no such file.

    Raises:
        ConfigError: The file cannot be read, written or understood. A broken
            file is never replaced: it may be the only copy of the key.
    """
    try:
        with path.open("rb") as file:
            content = file.read()
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except FileNotFoundError:
        return _create_key(path)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot read the key file {path}: {_reason(exc)}") from exc
    private = _parse(path, content)
    warning = ""
    if mode & 0o077:
        warning = (
            f"the key file {path} has mode {mode:04o}, others than its owner may "
            "use it: chmod 600 it"
        )
    return LoadedKey(private, warning=warning)


def _parse(path: Path, content: bytes) -> NodePrivate:
    try:
        fields = msgspec.json.decode(content, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise ConfigError(f"the key file {path} is no JSON object: {exc}") from exc
    # encoding/json takes the name in any case, and the last of several.
    text: object = None
    for name, value in fields.items():
        if name.lower() == "privatekey":
            text = value
    if not isinstance(text, str):
        # derper would run with an all-zero key here.
        raise ConfigError(f"the key file {path} has no PrivateKey")
    try:
        private = NodePrivate.from_text(text)
    except KeyFormatError as exc:
        raise ConfigError(f"the key file {path}: {exc}") from exc
    if private.is_zero():
        raise ConfigError(f"the key file {path} holds a key of zeros")
    return private


def _create_key(path: Path) -> LoadedKey:
    private = NodePrivate.generate()
    # json.MarshalIndent(config, "", "\t")
    content = f'{{\n\t"PrivateKey": "{private.to_text()}"\n}}'
    try:
        path.parent.mkdir(mode=0o777, parents=True, exist_ok=True)
        write_atomically(path, content.encode(), mode=0o600)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot write the key file {path}: {_reason(exc)}") from exc
    return LoadedKey(private, created=True)


def write_atomically(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that is there whole or not at all, even after a crash.

    Args:
        path: Replaced if it exists.
        content: All of it.
        mode: Its permission bits, which no umask changes.

    Raises:
        OSError: It could not be written; ``path`` is as it was.
    """
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".new"
    )
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    # The name is safe only when the directory is on the disk as well.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or str(exc)
