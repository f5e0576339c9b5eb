from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.record import FramingFigure, load, save
from tests.bench.results import good_record


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    record = good_record()
    record.framing.append(FramingFigure("encode", 1, [1.5, 2.5]))
    record.missing.append("no cargo")
    record.runs[0].result = None
    record.runs[0].error = "it failed"
    save(record, tmp_path / "new" / "record.json")
    assert load(tmp_path / "new" / "record.json") == record


def test_some_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"quick": 3}')
    with pytest.raises(msgspec.ValidationError):
        load(tmp_path / "other.json")
