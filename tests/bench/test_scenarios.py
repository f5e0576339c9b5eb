from __future__ import annotations

from bench.figures import Better
from bench.scenarios import FRAMING, SCENARIOS, Kind, select
from tests.bench.results import RESULTS, scenario


def test_names_are_unique() -> None:
    names = select([])
    assert len(names) == len(set(names))
    assert names[-1] == FRAMING


def test_patterns_select_in_the_order_of_the_table() -> None:
    assert select(["framing", "*-sparse"]) == ["tls-sparse", "plain-sparse", "framing"]
    assert select(["nothing-like-it"]) == []


def test_the_promised_targets_are_there() -> None:
    targets = {
        (each.name, figure.label): figure.target_text()
        for each in SCENARIOS
        for figure in each.figures
        if figure.target is not None
    }
    assert targets == {
        ("tls-64-k1", "relay CPU"): "ratio <= 1",
        ("tls-64-k16", "relay CPU"): "ratio <= 1",
        ("tls-1400-k1", "relay CPU"): "ratio <= 0.9",
        ("tls-1400-k16", "relay CPU"): "ratio <= 0.9",
        ("tls-fanout", "relay CPU"): "ratio <= 0.9",
        ("tls-sparse", "relay CPU"): "ratio <= 1.4",
        ("tls-window", "delivered"): "ratio >= 5",
        ("tls-window", "lost"): "ours <= 1",
        ("plain-64-k128", "relay CPU"): "ours <= 2",
        ("tls-idle", "memory per client"): "ratio <= 0.7",
        ("tls-idle", "more descriptors than before, all gone"): "ours <= 0",
        ("plain-idle", "more descriptors than before, all gone"): "ours <= 0",
        ("tls-transfer", "rate"): "ratio >= 0.95",
        ("coord-50", "server CPU"): "ratio <= 0.7",
        ("coord-200", "server CPU"): "ratio <= 0.7",
        ("coord-1000", "server CPU"): "ratio <= 0.7",
        ("coord-1000", "memory per client"): "ratio <= 2",
        ("coord-10000", "server CPU"): "ratio <= 0.7",
        ("coord-10000", "memory per client"): "ratio <= 2",
    }


def test_every_figure_can_be_read() -> None:
    for each in SCENARIOS:
        for figure in each.figures:
            assert figure.value(RESULTS[each.kind]) is not None, (each.name, figure)


def test_a_figure_in_derived_units() -> None:
    figures = {each.label: each for each in scenario("tls-idle").figures}
    result = RESULTS[Kind.IDLE]
    assert figures["memory per client"].value(result) == 20.0
    assert figures["more memory than before, all gone"].value(result) == 2.0
    lost = scenario("tls-window").figures[1]
    assert lost.value({"lost": 1, "delivered": 3}) == 25.0
    assert lost.better is Better.LOWER


def test_options_of_the_load_generator() -> None:
    assert scenario("plain-64-k128").loader_arguments(quick=True) == (
        *("bulk", "--size", "64", "--frames-per-write", "128", "--window", "256"),
        *("--warmup", "0.3", "--duration", "0.7"),
    )
    full = scenario("tls-idle").loader_arguments(quick=False)
    assert full == ("idle", "--tls", "--connections", "5000", "--hold", "2")
    assert scenario("coord-1000").loader_arguments(quick=True) == (
        *("crowd", "--clients", "1000", "--updates", "15", "--hold", "1"),
    )


def test_what_takes_minutes_is_not_in_the_short_form() -> None:
    assert select(["coord-*"], quick=True) == ["coord-200", "coord-1000"]
    assert select(["coord-*"])[-1] == "coord-10000"
