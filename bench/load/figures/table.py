"""`requests.parquet`, one row per measured request in the order of the schedule, and `telemetry.parquet`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qdeploy.bench.load.figures.outcome import Outcome
from qdeploy.bench.load.telemetry.telemetry import EngineSample
from qdeploy.errors import ComparisonError, disk_errors

SCHEMA = pa.schema(
    [
        ("index", pa.int32()),
        ("scheduled_ns", pa.int64()),
        ("dispatched_ns", pa.int64()),
        ("sent_ns", pa.int64()),
        ("headers_ns", pa.int64()),
        ("first_token_ns", pa.int64()),
        ("last_token_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("prompt_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("chunks", pa.int32()),
        ("chunk_ns", pa.list_(pa.int64())),
        ("chunk_tokens", pa.list_(pa.int32())),
        ("error", pa.string()),
        ("detail", pa.string()),
    ]
)


TELEMETRY_SCHEMA = pa.schema(
    [
        ("time_ns", pa.int64()),
        ("running", pa.float64()),
        ("waiting", pa.float64()),
        ("kv_usage", pa.float64()),
        ("preemptions", pa.float64()),
        ("prefix_queries", pa.float64()),
        ("prefix_hits", pa.float64()),
    ]
)


def write_requests(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write all rows, atomically. Times are ns from the start of the run."""
    _write(path, [{**asdict(o), "chunks": len(o.chunk_ns)} for o in outcomes], SCHEMA)


def read_requests(path: Path) -> list[Outcome]:
    """What `write_requests` wrote."""
    rows = pq.read_table(path, columns=[name for name in SCHEMA.names if name != "chunks"]).to_pylist()
    return [Outcome(**row) for row in rows]


def write_telemetry(path: Path, samples: Sequence[EngineSample], start_ns: int) -> None:
    """Write what the engine said of itself, one row a sample, atomically. Times are ns from `start_ns`."""
    _write(path, [{**asdict(s), "time_ns": s.time_ns - start_ns} for s in samples], TELEMETRY_SCHEMA)


def output_lengths(folder: Path) -> list[int]:
    """Output tokens of the completed requests of a run folder.

    Raises:
        ComparisonError: it is not the folder of a load run.
    """
    path = folder / "requests.parquet"
    try:
        rows = pq.read_table(path, columns=["output_tokens", "error"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ComparisonError(
            f"{folder} is not a folder that `qdeploy bench -o` wrote: cannot read {path.name} ({error})."
        ) from error
    return [row["output_tokens"] for row in rows if row["error"] is None]


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        pq.write_table(pa.Table.from_pylist(rows, schema), temporary)
        temporary.replace(path)
