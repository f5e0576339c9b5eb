"""What the codec costs alone: frames encoded, decoded and split in memory.

CPU time of this thread, so that other work on the machine counts little.
Before anything is timed, what comes out is compared with what went in.
"""

from __future__ import annotations

import random
import sys
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from bench.figures import Spread, number
from bench.record import FramingFigure
from relay.derp.split import split_frames
from tailnet.derp.frame_buffer import FrameBuffer, decode_frame
from tailnet.derp.frames import (
    RawFrame,
    RecvPacket,
    SendPacket,
    decode_client_frame,
    decode_server_frame,
    encode_frame,
    encode_note_preferred,
    encode_ping,
    encode_recv_packet,
    encode_send_packet,
)
from tailnet.keys import KEY_LEN, NodePublic

__all__ = ("Operation", "check", "make_operations", "measure", "mixed_frames")

# One read of the relay from a busy client.
BUFFER_LEN: Final = 64 << 10
SOURCE: Final = NodePublic(bytes(range(KEY_LEN)))
PEERS: Final = tuple(NodePublic(bytes([number]) * KEY_LEN) for number in range(1, 5))
# Disco, a TCP acknowledgement in WireGuard, a full WireGuard packet of the
# usual MTU, and one of an MTU of 1400.
SIZES: Final = (118, 96, 1296, 1432)
# Neighbouring packets for one peer, as a congestion window leaves them.
LONGEST_RUN: Final = 12
REPEAT_SECONDS: Final = 0.05


class Operation(NamedTuple):
    """What is timed: ``call`` handles ``frames`` frames."""

    name: str
    frames: int
    call: Callable[[], object]


@dataclass(slots=True)
class _Counter:
    """A sink that keeps what it is given, as queues do."""

    runs: list[bytes] = field(default_factory=list)
    count: int = 0

    def packets(self, dst: bytes, frames: bytes, count: int, *, disco: bool) -> None:
        del dst, disco
        self.runs.append(frames)
        self.count += count

    def frame(self, frame_type: int, body: bytes) -> None:
        del frame_type, body
        self.count += 1


def mixed_frames(seed: int = 1) -> list[bytes]:
    """Make frames of a busy client, less than 64 KiB together.

    Args:
        seed: The same seed makes the same frames.
    """
    rng = random.Random(seed)
    frames: list[bytes] = []
    used = 0
    while True:
        peer, size = rng.choice(PEERS), rng.choice(SIZES)
        run = [
            encode_send_packet(peer, rng.randbytes(size))
            for _ in range(rng.randint(1, LONGEST_RUN))
        ]
        if rng.random() < 0.1:
            run.append(encode_ping(rng.randbytes(8)))
        if rng.random() < 0.05:
            run.append(encode_note_preferred(preferred=True))
        for frame in run:
            if used + len(frame) > BUFFER_LEN:
                return frames
            frames.append(frame)
            used += len(frame)


def flow_frames(size: int) -> list[bytes]:
    """Make frames of one flow to one peer, less than 64 KiB together."""
    frame = encode_send_packet(PEERS[0], random.Random(size).randbytes(size))
    return [frame] * (BUFFER_LEN // len(frame))


def cut(data: bytes) -> list[RawFrame]:
    """Cut a buffer as a client does, frame by frame."""
    buffer = FrameBuffer()
    buffer.receive_data(data)
    frames = []
    while (frame := buffer.next_frame()) is not None:
        frames.append(frame)
    return frames


def split(data: bytes) -> _Counter:
    """Split a buffer as the relay does, in runs."""
    sink = _Counter()
    split_frames(data, bytes(SOURCE), sink)
    return sink


def _decode(wire: bytes) -> object:
    decoded = decode_frame(memoryview(wire))
    assert decoded is not None
    return decode_server_frame(decoded[0])


def make_operations() -> list[Operation]:
    """Make the list of what is timed."""
    operations: list[Operation] = []
    for size in (64, 1400):
        packet = random.Random(size).randbytes(size)
        received = encode_recv_packet(SOURCE, packet)
        operations += [
            Operation(
                f"encode SendPacket, {size} B",
                1,
                partial(encode_send_packet, PEERS[0], packet),
            ),
            Operation(
                f"decode RecvPacket, {size} B",
                1,
                partial(_decode, received),
            ),
        ]
    frames = mixed_frames()
    mixed = b"".join(frames)
    operations += [
        Operation(
            "cut a mixed 64 KiB buffer (client)", len(frames), lambda: cut(mixed)
        ),
        Operation(
            "cut and decode it",
            len(frames),
            lambda: [decode_client_frame(frame) for frame in cut(mixed)],
        ),
        Operation("split it in runs (relay)", len(frames), lambda: split(mixed)),
    ]
    for size in (64, 1400):
        flow = flow_frames(size)
        data = b"".join(flow)
        operations.append(
            Operation(
                f"split 64 KiB of one flow, {size} B",
                len(flow),
                partial(split, data),
            )
        )
    return operations


def check(frames: list[bytes]) -> list[str]:
    """Compare what comes out of cutting and splitting with what goes in.

    Returns:
        What is wrong, a line each.
    """
    data = b"".join(frames)
    raw = cut(data)
    faults = []
    if [encode_frame(frame.type, bytes(frame.body)) for frame in raw] != frames:
        faults.append("framing: the frames cut out are not those put in")
    decoded = [decode_client_frame(frame) for frame in raw]
    packets = [each for each in decoded if isinstance(each, SendPacket)]
    sink = split(data)
    if sink.count != len(frames):
        faults.append(f"framing: {sink.count} of {len(frames)} frames split")
    relayed = [decode_server_frame(frame) for frame in cut(b"".join(sink.runs))]
    if relayed != [RecvPacket(SOURCE, each.packet) for each in packets]:
        faults.append("framing: the packets split out are not those put in")
    return faults


def measure(repetitions: int) -> tuple[list[FramingFigure], list[str]]:
    """Time every operation.

    Args:
        repetitions: How often each is timed, for at least REPEAT_SECONDS.

    Returns:
        The figures, and what was wrong with the bytes.
    """
    faults = check(mixed_frames())
    for size in (64, 1400):
        faults += check(flow_frames(size))
    figures = []
    for name, frames, call in make_operations():
        # timeit keeps the garbage collector away.
        timer = timeit.Timer(call, timer=time.thread_time)
        once = max(timer.timeit(20) / 20, 1e-9)
        calls = max(1, round(REPEAT_SECONDS / once))
        seconds = timer.repeat(repetitions, calls)
        per_frame = [each / calls / frames * 1e9 for each in seconds]
        figures.append(FramingFigure(name, frames, per_frame))
    return figures, faults


def main() -> int:
    """Print the figures; the status says whether the bytes were right."""
    figures, faults = measure(7)
    for figure in figures:
        spread = Spread.of(figure.ns_per_frame)
        assert spread is not None
        print(
            f"{figure.name:40} {spread} ns/frame,"
            f" {number(1e9 / spread.median)} frames/s"
        )
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
