"""The manifest of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from qdeploy.bench.records.accuracy import Noise, TaskFigure, TaskScore
from qdeploy.bench.records.base import Engine, Record
from qdeploy.bench.records.fidelity import Fidelity
from qdeploy.bench.records.load import LoadResult, SeriesRecord
from qdeploy.errors import ComparisonError
from qdeploy.files import read_json, write_text
from qdeploy.validation import first

SCHEMA = 1
SERIES = "series.json"


class RunRecord(Record):
    """The manifest of a run, `run.json`.

    `skipped` names the tasks of a suite that were not asked, each with the reason; `incomplete` those whose
    number of documents is not the release's.
    """

    record: Literal["qdeploy-run"] = "qdeploy-run"
    schema_version: int = SCHEMA
    kind: Literal["bench", "eval", "verify"]
    name: str
    provenance: dict[str, Any]
    engine: Engine
    settings: dict[str, Any] = Field(default_factory=dict)
    baseline: str | None = None
    baseline_engine: Engine | None = None
    load: LoadResult | None = None
    fidelity: Fidelity | None = None
    tasks: list[TaskScore] = Field(default_factory=list)
    suite: TaskScore | None = None
    figures: list[TaskFigure] = Field(default_factory=list)
    skipped: dict[str, str] = Field(default_factory=dict)
    incomplete: dict[str, str] = Field(default_factory=dict)
    verify: dict[str, Any] | None = None
    noise: Noise | None = None

    def save(self, folder: Path) -> None:
        """Write `run.json` into `folder`, atomically."""
        write_text(folder / "run.json", self.model_dump_json(indent=2) + "\n")


def load_record(folder: Path) -> RunRecord:
    """Read the record of a run folder.

    Raises:
        ComparisonError: there is none, or it is not one of this schema.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise ComparisonError(
            f"{folder} is not a run folder: it holds no run.json. Give the folder that "
            "`qdeploy eval -o` or `qdeploy bench -o` wrote."
        )
    try:
        record = RunRecord.model_validate(read_json(path))
    except ValueError as error:
        raise ComparisonError(f"{path} is not a run record of schema {SCHEMA} ({first(error)}).") from error
    return record


def load_series(folder: Path) -> SeriesRecord:
    """Read what `qdeploy bench --sweep -o` or a search wrote into `folder`.

    Raises:
        ComparisonError: its series.json is not one of this schema.
    """
    path = folder / SERIES
    try:
        return SeriesRecord.model_validate(read_json(path))
    except ValueError as error:
        raise ComparisonError(f"{path} is not the record of a series ({first(error)}).") from error
