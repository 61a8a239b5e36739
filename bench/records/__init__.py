"""Runs as records: what a measurement leaves on disk, and all that a report or a comparison may read.

A run folder holds `run.json` (a RunRecord) and, beside it, per-item results in Parquet (`items.parquet` for
accuracy, `tokens.parquet` for fidelity, `requests.parquet` for load). Comparisons join two folders on keys.
"""

from __future__ import annotations

from qdeploy.bench.records.accuracy import Noise, TaskFigure, TaskScore
from qdeploy.bench.records.base import Engine, Estimate, Record, Verdict
from qdeploy.bench.records.decision import DECISION, Decision, Optimum, Standing, load_decision
from qdeploy.bench.records.fidelity import (
    Candidate,
    Disagreement,
    Fidelity,
    Method,
    MonteCarlo,
    TokenStatistics,
)
from qdeploy.bench.records.load import (
    ClientUse,
    Cost,
    Distribution,
    GpuUse,
    Level,
    LimitResult,
    LoadResult,
    Percentile,
    SeriesRecord,
    SloResult,
    SteadyWindow,
    Telemetry,
)
from qdeploy.bench.records.run import SCHEMA, SERIES, RunRecord, load_record, load_series

__all__ = [
    "DECISION",
    "SCHEMA",
    "SERIES",
    "Candidate",
    "ClientUse",
    "Cost",
    "Decision",
    "Disagreement",
    "Distribution",
    "Engine",
    "Estimate",
    "Fidelity",
    "GpuUse",
    "Level",
    "LimitResult",
    "LoadResult",
    "Method",
    "MonteCarlo",
    "Noise",
    "Optimum",
    "Percentile",
    "Record",
    "RunRecord",
    "SeriesRecord",
    "SloResult",
    "Standing",
    "SteadyWindow",
    "TaskFigure",
    "TaskScore",
    "Telemetry",
    "TokenStatistics",
    "Verdict",
    "load_decision",
    "load_record",
    "load_series",
]
