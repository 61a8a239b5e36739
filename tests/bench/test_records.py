"""Run folders as they are read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy.bench.records import load_record
from qdeploy.errors import ComparisonError
from qdeploy.files import write_json


@pytest.mark.parametrize(
    ("content", "told"), [({"kind": "poem"}, r"kind: Input should be"), ([1], r"the file: Input should be")]
)
def test_a_record_of_another_kind_is_told_in_one_line(content: object, told: str, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", content)
    with pytest.raises(ComparisonError, match=told) as caught:
        load_record(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_record_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "eval"')
    with pytest.raises(ComparisonError, match=r"run\.json is not a run record.*delimiter") as caught:
        load_record(tmp_path)
    assert "\n" not in str(caught.value)
