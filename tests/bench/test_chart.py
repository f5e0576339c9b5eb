from __future__ import annotations

from xml.etree import ElementTree as ET

from bench.chart import COLOURS, LONGEST, WIDTH, cost, draw
from bench.figures import Side
from bench.judgement import Verdict, make_rows
from bench.record import Record
from tests.bench.results import good_record, result_of

SVG = "{http://www.w3.org/2000/svg}"


def with_ours(name: str, field: str, value: float) -> Record:
    record = good_record(name, repetitions=1)
    result_of(record, name, Side.OURS)[field] = value
    return record


def bars(record: Record) -> list[ET.Element]:
    return list(ET.fromstring(draw(make_rows(record)[:1])).iter(f"{SVG}rect"))


def test_a_bar_is_as_long_as_what_it_shows() -> None:
    (bar,) = bars(with_ours("tls-1400-k1", "relay_cpu_us_per_packet", 2.0))
    assert float(bar.attrib["width"]) == round(0.5 * WIDTH / LONGEST, 1)
    assert bar.attrib["fill"] == COLOURS[Verdict.MET]


def test_a_rate_is_drawn_upside_down() -> None:
    (row, *_) = make_rows(with_ours("tls-transfer", "mb_per_second", 10.0))
    assert cost(row) == 2.0


def test_a_bar_that_is_too_long_is_cut_and_says_so() -> None:
    record = with_ours("tls-sparse", "relay_cpu_us_per_packet", 400.0)
    (bar,) = bars(record)
    assert float(bar.attrib["width"]) == WIDTH
    assert bar.attrib["fill"] == COLOURS[Verdict.MISSED]
    assert "100.00 (cut)" in draw(make_rows(record))


def test_what_cannot_be_compared_has_no_bar() -> None:
    record = good_record("tls-sparse", repetitions=1)
    record.runs = [run for run in record.runs if run.side is Side.OURS]
    assert bars(record) == []
