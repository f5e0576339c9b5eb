from __future__ import annotations

from bench.record import FramingFigure
from bench.report import kept_notes, render, summary, table
from bench.scenarios import Section
from tests.bench.results import good_record, result_of


def test_a_table_is_one_in_its_source_too() -> None:
    assert table(("a", "long head"), [["longer", "b"]]) == (
        "| a      | long head |\n|--------|-----------|\n| longer | b         |\n"
    )


def test_every_row_of_a_table_has_as_many_cells() -> None:
    for text in (render(good_record(), chart="x.svg"), summary(good_record())):
        blocks = [block for block in text.split("\n\n") if block.startswith("|")]
        assert blocks
        for block in blocks:
            assert len({line.count("|") for line in block.strip().splitlines()}) == 1


def test_a_row_with_ratio_target_and_verdict() -> None:
    record = good_record("tls-1400-k1")
    for repetition in (1, 2, 3):
        result = result_of(record, "tls-1400-k1", repetition=repetition)
        result["relay_cpu_us_per_packet"] = 1.0 + repetition
    words = " ".join(summary(record).split())
    assert (
        "| tls-1400-k1 | relay CPU, us/packet | 3.00 (2.00 to 4.00)"
        " | 4.00 (4.00 to 4.00) | 0.75 (0.50 to 1.00) | ratio <= 0.9 | met |"
    ) in words
    assert "1 of 1 targets met; 12 s." in words
    assert "Packets compared, ours: 3,000 delivered, 0 corrupt, 0 reordered." in words


def test_the_report_asks_every_question() -> None:
    text = render(good_record(), chart="benchmarks.svg")
    for section in Section:
        assert f"## {section.title}\n\n{section.question} {section.method}\n" in text
    assert "](benchmarks.svg)" in text
    assert "of a test" in text


def test_a_section_without_figures_is_left_out() -> None:
    text = render(good_record("tls-sparse"), chart="x.svg")
    assert "## Sparse traffic" in text
    assert "## Handshakes" not in text
    assert "## Framing" not in text


def test_figures_of_the_codec() -> None:
    record = good_record("tls-sparse")
    record.names.append("framing")
    record.framing.append(FramingFigure("encode", 1, [500.0, 400.0, 600.0]))
    line = "| encode | 1 | 500 (400 to 600) | 2,000,000 |"
    assert line in " ".join(summary(record).split())
    assert "## Framing" in render(record, chart="x.svg")


def test_faults_and_missing_programs_are_told() -> None:
    record = good_record("tls-64-k1")
    record.missing.append("no cargo")
    result_of(record, "tls-64-k1")["corrupt"] = 1
    for text in (summary(record), render(record, chart="x.svg")):
        assert "Not there: no cargo\n" in text
        assert "FAULT: tls-64-k1, ours, repetition 1: 1 packets corrupt\n" in text


def test_notes_survive_the_next_report() -> None:
    first = render(good_record(), chart="x.svg")
    assert kept_notes(first) == ""
    noted = render(good_record(), chart="x.svg", notes="## Why\n\nBecause.\n")
    assert kept_notes(noted) == "## Why\n\nBecause."
    again = render(good_record(), chart="x.svg", notes=kept_notes(noted))
    assert again == noted
    assert kept_notes("# Some other file\n") == ""
