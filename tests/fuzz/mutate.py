"""A plain mutation fuzzer, for where the coverage-guided one is not to be had.

It knows nothing of what the code does with an input. It starts from a corpus
and makes inputs that are nearly right. With the same seed and corpus it makes
the same ones.
"""

from __future__ import annotations

import hashlib
import random
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ("MAX_LEN", "Outcome", "fuzz", "mutated")

# Bytes. Long enough for every rule, short enough for many tries.
MAX_LEN: Final = 4096

# Lengths and numbers at which something changes somewhere.
_EDGES: Final = (
    0, 1, 7, 8, 31, 32, 33, 40, 64, 125, 126, 127, 128, 255, 1000, 1024, 65535, 65536,
    65568, 1 << 20, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1,
)  # fmt: skip
_NUMBERS: Final = tuple(
    value.to_bytes(size, "big")
    for size in (1, 2, 4, 8)
    for value in _EDGES
    if value < 1 << (8 * size)
)
_TOKENS: Final = (
    b"\r\n", b"\r\n\r\n", b": ", b",", b"derp", b"websocket", b"Upgrade",
    b"null", b"{}", b"[]", b'"', b"\\u0000", b"1e999", b"-1", b"\xff\xfe",
    b"DERP\xf0\x9f\x94\x91", b"TS\xf0\x9f\x92\xac", b"!\x12\xa4B",
    b"nodekey:", b"privkey:",
)  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What came of fuzzing a target.

    Attributes:
        executions: How many inputs were tried.
        crashes: The inputs that made it raise, one for each place.
    """

    executions: int = 0
    crashes: list[Path] = field(default_factory=list)


def fuzz(
    target: Callable[[bytes], None],
    corpus: Sequence[bytes],
    crashes: Path,
    *,
    seconds: float = float("inf"),
    executions: float = float("inf"),
    seed: int = 0,
) -> Outcome:
    """Try the corpus, then inputs made from it, until a bound is reached.

    Args:
        target: Raises for an input that breaks a promise.
        corpus: Inputs to start from.
        crashes: Folder for inputs that make ``target`` raise; it is made when
            there is one.
        seconds: How long to go on.
        executions: How many inputs to try.
        seed: Of the mutations.
    """
    outcome, seen = Outcome(), set[str]()
    dice = random.Random(seed)
    deadline = time.monotonic() + seconds
    pool = [data for data in corpus if len(data) <= MAX_LEN] or [b""]
    while outcome.executions < executions and time.monotonic() < deadline:
        number = outcome.executions
        data = corpus[number] if number < len(corpus) else mutated(pool, dice)
        outcome.executions += 1
        try:
            target(data)
        except Exception as exc:
            where = _place(exc)
            if where not in seen:
                seen.add(where)
                outcome.crashes.append(_save(data, crashes))
                traceback.print_exc()
    return outcome


def _place(exc: Exception) -> str:
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__} {last.filename}:{last.lineno}"


def _save(data: bytes, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"crash-{hashlib.sha256(data).hexdigest()[:40]}"
    path.write_bytes(data)
    return path


def mutated(pool: Sequence[bytes], dice: random.Random) -> bytes:
    """An input made from one of ``pool``, or from two."""
    data = bytearray(dice.choice(pool))
    for _ in range(1 << dice.randrange(4)):
        _mutate(data, pool, dice)
    return bytes(data[:MAX_LEN])


def _mutate(data: bytearray, pool: Sequence[bytes], dice: random.Random) -> None:
    start = dice.randrange(len(data) + 1)
    end = min(len(data), start + 1 + int(dice.expovariate(0.1)))
    match dice.randrange(8):
        case 0 if start < len(data):
            data[start] ^= 1 << dice.randrange(8)
        case 1 if start < len(data):
            data[start] = dice.randrange(256)
        case 2:
            del data[start:end]
        case 3:
            data[start:start] = data[start:end] * dice.choice((1, 1, 1, 2, 50))
        case 4:
            data[start:start] = dice.randbytes(dice.randrange(1, 9))
        case 5:
            number = dice.choice(_NUMBERS)
            data[start : start + len(number)] = number
        case 6:
            data[start:start] = dice.choice(_TOKENS)
        case _:
            other = dice.choice(pool)
            cut = dice.randrange(len(other) + 1)
            data[start:end] = other[cut : cut + dice.randrange(1, 65)]
