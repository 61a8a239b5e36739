"""`requests.parquet`: one row per measured request, in the order of the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qdeploy.bench.load.outcome import Outcome
from qdeploy.errors import disk_errors

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


def write_requests(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write all rows, atomically. Times are ns from the start of the run."""
    rows = [{**asdict(o), "chunks": len(o.chunk_ns)} for o in outcomes]
    temporary = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)
        temporary.replace(path)
