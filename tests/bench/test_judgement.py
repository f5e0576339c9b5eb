"""What fails the bench, and what is only told."""

from __future__ import annotations

import pytest

from bench.figures import Side
from bench.judgement import (
    Row,
    Verdict,
    count_deliveries,
    count_packets,
    find_faults,
    loader_limited,
    make_rows,
)
from bench.record import Record
from tests.bench.results import good_record, result_of

CPU = "relay_cpu_us_per_packet"


def first_row(record: Record) -> Row:
    return make_rows(record)[0]


def test_a_good_record_has_no_faults() -> None:
    assert find_faults(good_record()) == []


def test_a_row_compares_medians() -> None:
    record = good_record("tls-1400-k1")
    for repetition, (ours, derper) in enumerate([(6, 10), (9, 11), (5, 8)], 1):
        result_of(record, "tls-1400-k1", Side.OURS, repetition)[CPU] = ours
        result_of(record, "tls-1400-k1", Side.DERPER, repetition)[CPU] = derper
    row = first_row(record)
    assert str(row.ours) == "6.00 (5.00 to 9.00)"
    assert row.ratio == 0.6
    assert row.pairs is not None
    assert (row.pairs.low, row.pairs.high) == (0.6, 9 / 11)
    assert row.verdict is Verdict.MET


def test_a_missed_target_is_told_and_no_fault() -> None:
    record = good_record("tls-1400-k1")
    for repetition in (1, 2, 3):
        result_of(record, "tls-1400-k1", Side.OURS, repetition)[CPU] = 400.0
    assert first_row(record).verdict is Verdict.MISSED
    assert find_faults(record) == []


def test_a_target_for_ours_alone_needs_no_derper() -> None:
    record = good_record("plain-64-k128")
    record.sides = [Side.OURS]
    record.runs = [run for run in record.runs if run.side is Side.OURS]
    for repetition in (1, 2, 3):
        result_of(record, "plain-64-k128", Side.OURS, repetition)[CPU] = 1.2
    row = first_row(record)
    assert (row.ratio, row.verdict) == (None, Verdict.MET)
    assert find_faults(record) == []


def test_a_ratio_without_derper_is_missing() -> None:
    record = good_record("tls-64-k1")
    record.runs = [run for run in record.runs if run.side is Side.OURS]
    assert first_row(record).verdict is Verdict.MISSING
    assert find_faults(record) == [
        f"tls-64-k1, derper, repetition {number}: did not run" for number in (1, 2, 3)
    ]


def test_a_figure_that_is_missing_once_is_a_fault() -> None:
    record = good_record("tls-sparse")
    result_of(record, "tls-sparse", Side.DERPER, 2)[CPU] = None
    assert find_faults(record) == [
        "tls-sparse, derper, repetition 2: no figure for relay CPU"
    ]


def test_a_run_that_failed_is_a_fault_with_its_reason() -> None:
    record = good_record("tls-transfer")
    record.runs[-1].result = None
    record.runs[-1].error = "3 bytes arrived"
    assert find_faults(record) == [
        "tls-transfer, derper, repetition 3: 3 bytes arrived"
    ]


@pytest.mark.parametrize("side", [Side.OURS, Side.DERPER])
@pytest.mark.parametrize("count", ["corrupt", "reordered", "unaccounted"])
def test_wrong_bytes_are_a_fault_on_either_side(count: str, side: Side) -> None:
    record = good_record("tls-1400-k16")
    result_of(record, "tls-1400-k16", side, 2)[count] = 1
    assert find_faults(record) == [
        f"tls-1400-k16, {side}, repetition 2: 1 packets {count}"
    ]


def test_a_packet_that_our_queue_had_room_for_must_arrive() -> None:
    record = good_record("tls-64-k1")
    result_of(record, "tls-64-k1")["never_arrived"] = 7
    assert find_faults(record) == [
        "tls-64-k1, ours, repetition 1: 7 packets lost, and the queue had room"
    ]


def test_a_packet_written_off_in_a_stall_is_no_fault() -> None:
    record = good_record("tls-64-k1")
    result_of(record, "tls-64-k1")["lost"] = 7
    assert find_faults(record) == []


def test_what_derper_loses_is_no_fault() -> None:
    record = good_record("tls-window")
    result_of(record, "tls-window", Side.DERPER).update(
        never_arrived=900, lost=900, closed_connections=1
    )
    assert find_faults(record) == []


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("tls-64-k1", {"closed_connections": 2}, "2 connections ended"),
        ("tls-idle", {"failed_handshakes": 3}, "3 handshakes failed"),
        ("tls-idle", {"alive_after_hold": 1999}, "1999 of 2000 lived on"),
        ("plain-handshakes", {"failed_handshakes": 1}, "1 handshakes failed"),
        ("coord-200", {"have_last_update": 199}, "199 of 200 have the last node"),
        ("coord-200", {"ready_for_handshake": 198}, "198 of 200 were told once"),
        ("coord-200", {"repeated": 3}, "3 nodes were sent twice"),
        ("tls-slow", {"corrupt": 4}, "4 packets of the flood corrupt"),
        (
            "tls-slow",
            {"slow_stream_whole": False},
            "the slow receiver's stream did not end whole",
        ),
    ],
)
def test_other_faults(name: str, change: dict[str, object], fault: str) -> None:
    record = good_record(name, repetitions=1)
    result_of(record, name).update(change)
    assert find_faults(record) == [f"{name}, ours, repetition 1: {fault}"]


def test_a_bystander_is_judged_like_any_flow() -> None:
    record = good_record("tls-slow", repetitions=1)
    result_of(record, "tls-slow")["bystander"]["corrupt"] = 1
    assert find_faults(record) == ["tls-slow, ours, repetition 1: 1 packets corrupt"]


def test_a_result_of_another_shape_is_a_fault() -> None:
    record = good_record("tls-64-k1", repetitions=1)
    del result_of(record, "tls-64-k1")["corrupt"]
    assert find_faults(record) == [
        (
            "tls-64-k1, ours, repetition 1: the result is not what it should be:"
            " KeyError('corrupt')"
        )
    ]


def test_faults_of_the_codec_count() -> None:
    record = good_record("tls-64-k1")
    record.faults.append("framing: 1 of 2 frames split")
    record.names.append("framing")
    assert find_faults(record) == [
        "framing: 1 of 2 frames split",
        "framing: no figures",
    ]


def test_a_relay_that_was_not_busy_is_named() -> None:
    record = good_record("tls-64-k1", "tls-sparse")
    for repetition in (1, 2, 3):
        result_of(record, "tls-64-k1", Side.OURS, repetition)["relay_cores"] = 0.5
        # Nothing is pinned there, and it is never busy.
        result_of(record, "tls-sparse", Side.OURS, repetition)["relay_cores"] = 0.1
    assert loader_limited(record) == ["tls-64-k1 (ours)"]


def test_a_coordinator_runs_beside_coders_alone() -> None:
    record = good_record("coord-200", "tls-sparse", repetitions=1)
    assert [(run.scenario, run.side) for run in record.runs] == [
        ("tls-sparse", Side.OURS),
        ("tls-sparse", Side.DERPER),
        ("coord-200", Side.OURS),
        ("coord-200", Side.CODER),
    ]
    alone = result_of(record, "coord-200", Side.OURS)["alone"]
    alone["server_cpu_us_per_delivery"] = 16.0
    (_, row) = [each for each in make_rows(record) if each.figure.target]
    assert (row.ratio, row.verdict) == (0.4, Verdict.MET)
    assert count_deliveries(record, Side.CODER) == 24_000
    assert count_deliveries(record, Side.DERPER) == 0
    assert loader_limited(record) == []


def test_packets_are_added_up_with_the_bystanders() -> None:
    record = good_record("tls-64-k1", "tls-slow", "tls-transfer", repetitions=1)
    result_of(record, "tls-64-k1")["corrupt"] = 2
    assert count_packets(record, Side.OURS) == {
        "delivered": 2300,
        "corrupt": 2,
        "reordered": 0,
    }
    assert count_packets(good_record("tls-transfer"), Side.OURS) == {}
