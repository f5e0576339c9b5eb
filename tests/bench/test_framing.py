from __future__ import annotations

import itertools

import pytest

from bench import framing
from bench.framing import (
    BUFFER_LEN,
    check,
    flow_frames,
    make_operations,
    measure,
    mixed_frames,
)
from tailnet.derp.frames import RawFrame


def test_the_mixed_buffer_is_full_and_mixed() -> None:
    frames = mixed_frames()
    assert frames == mixed_frames()
    assert frames != mixed_frames(seed=2)
    assert BUFFER_LEN - 1500 < sum(map(len, frames)) <= BUFFER_LEN
    assert len({frame[0] for frame in frames}) > 1  # frame types
    assert len({frame[5:37] for frame in frames if frame[0] == 4}) > 1  # peers
    assert len({len(frame) for frame in frames}) > 3


def test_the_codec_agrees_with_itself() -> None:
    assert check(mixed_frames()) == []
    assert check(flow_frames(64)) == []


def test_a_packet_that_is_changed_on_the_way_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true_split = framing.split

    def damaging_split(data: bytes) -> framing._Counter:
        sink = true_split(data)
        run = bytearray(sink.runs[-1])
        run[-1] ^= 1
        sink.runs[-1] = bytes(run)
        return sink

    monkeypatch.setattr(framing, "split", damaging_split)
    assert check(mixed_frames()) == [
        "framing: the packets split out are not those put in"
    ]


def test_a_frame_that_is_skipped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    true_cut = framing.cut
    calls = itertools.count()

    def forgetful_cut(data: bytes) -> list[RawFrame]:
        frames = true_cut(data)
        return frames[1:] if next(calls) == 0 else frames

    monkeypatch.setattr(framing, "cut", forgetful_cut)
    assert check(flow_frames(1400)) == [
        "framing: the frames cut out are not those put in",
        "framing: the packets split out are not those put in",
    ]


def test_every_operation_runs() -> None:
    for operation in make_operations():
        operation.call()
        assert operation.frames >= 1


def test_figures_come_with_all_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "REPEAT_SECONDS", 1e-6)
    figures, faults = measure(2)
    assert faults == []
    assert [each.name for each in figures] == [each.name for each in make_operations()]
    assert all(len(each.ns_per_frame) == 2 for each in figures)
