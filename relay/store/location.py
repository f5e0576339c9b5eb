"""The directory with the server's state, and the database in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import platformdirs

from tailnet.errors import ConfigError

__all__ = ("DATABASE_FILE", "default_data_dir", "prepare_data_dir")

DATABASE_FILE: Final = "tailnet.db"


def default_data_dir() -> Path:
    """Where this user's programs keep their data: ``~/.local/share/tailnet``."""
    return platformdirs.user_data_path("tailnet", appauthor=False)


def prepare_data_dir(path: Path) -> Path:
    """Make the directory, for its owner alone, if it is not there.

    Returns:
        Where its database is, or will be.

    Raises:
        ConfigError: It cannot be made or written to.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise ConfigError(
            f"cannot make the data directory {path}: {reason}; choose another "
            "--data-dir"
        ) from exc
    # SQLite keeps its write-ahead log beside the database.
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(
            f"cannot write to the data directory {path}; choose another --data-dir"
        )
    return path / DATABASE_FILE
