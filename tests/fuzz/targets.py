"""What is fuzzed: every decoder of bytes that others send.

A target takes any bytes, and raises if a promise does not hold:

- Nothing comes out of a decoder but the exceptions its module names.
- Where the input is a stream, it does not matter how it is cut.
- What was understood, written out and read again is the same.
- Where two of ours read the same thing, they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.fuzz import (
    control_targets,
    derp_targets,
    other_targets,
    sdk_targets,
    web_targets,
)

__all__ = ("CORPUS", "TARGETS", "corpus_of")

CORPUS: Final = Path(__file__).parent / "corpus"

TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    name: getattr(module, name)
    for module in (
        derp_targets,
        web_targets,
        control_targets,
        sdk_targets,
        other_targets,
    )
    for name in module.__all__
}


def corpus_of(target: str) -> list[Path]:
    """The committed inputs of a target."""
    return sorted(path for path in (CORPUS / target).iterdir() if path.is_file())
