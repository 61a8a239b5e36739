"""`items.parquet`: one row an item, so that any later run can be paired with this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qdeploy.bench.accuracy.scoring import ItemScore
from qdeploy.errors import ComparisonError

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("kind", pa.string()),
        ("doc_id", pa.string()),
        ("cluster", pa.string()),
        ("prompt_hash", pa.string()),
        ("gold", pa.int32()),
        ("predicted", pa.int32()),
        ("correct", pa.float64()),
        ("correct_norm", pa.float64()),
        ("loglikelihoods", pa.list_(pa.float64())),
        ("lengths", pa.list_(pa.int32())),
        ("split", pa.bool_()),
        ("values", pa.map_(pa.string(), pa.float64())),
        ("parts", pa.string()),
        ("response", pa.string()),
    ]
)


def write_items(path: Path, scores: Sequence[ItemScore]) -> None:
    """Write all rows."""
    pq.write_table(pa.Table.from_pylist([asdict(score) for score in scores], SCHEMA), path)


def read_items(folder: Path) -> list[ItemScore]:
    """The rows of a run folder; none where the run scored no task.

    Raises:
        ComparisonError: the file is not one that this version writes.
    """
    path = folder / "items.parquet"
    if not path.is_file():
        return []
    try:
        rows = pq.read_table(path).to_pylist(maps_as_pydicts="strict")
        return [ItemScore(**row) for row in rows]
    except (pa.ArrowException, TypeError) as error:
        raise ComparisonError(f"{path} is not readable as item scores: {error}") from error
