"""Runs as records: what a measurement leaves on disk, and all that a report or a comparison may read.

A run folder holds `run.json` (a RunRecord) and, beside it, per-item results in Parquet (`items.parquet` for
accuracy, `tokens.parquet` for fidelity, `requests.parquet` for load). Comparisons join two folders on keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qdeploy.errors import ComparisonError
from qdeploy.files import read_json, write_text
from qdeploy.validation import first

SCHEMA = 1
Verdict = Literal["pass", "fail", "inconclusive"]


class Record(BaseModel):
    """Base: unknown keys are refused so that a misspelt figure cannot vanish."""

    model_config = ConfigDict(extra="forbid")


class Estimate(Record):
    """A figure with its 95 % confidence interval; `low` and `high` are None where it cannot be had."""

    value: float
    low: float | None = None
    high: float | None = None


class Engine(Record):
    """What served the model. `kernel` is what the engine's own log says it runs quantized layers with."""

    name: str
    version: str | None = None
    base_url: str
    model: str
    local: bool = False
    kernel: str | None = None
    quantization: str | None = None
    arguments: list[str] = Field(default_factory=list)
    load_seconds: float | None = None
    checkpoint: str | None = None


class Percentile(Record):
    """One percentile, `q` a fraction; `value` is None where there are fewer than `needed` samples."""

    q: float
    value: float | None
    low: float | None = None
    high: float | None = None
    needed: int


class Distribution(Record):
    """A latency in milliseconds over the completed requests."""

    count: int
    mean: float | None
    percentiles: list[Percentile]


class LoadResult(Record):
    """One load run (definitions: docs/metrics.md)."""

    arrival: Literal["poisson", "constant", "closed"]
    rate: float | None = None
    concurrency: int | None = None
    prompt_tokens_asked: int
    output_tokens_asked: int
    seed: int
    requests: int
    completed: int
    failed: int
    errors: dict[str, int] = Field(default_factory=dict)
    duration_s: float
    achieved_rate: float
    input_tokens: int
    output_tokens: int
    request_throughput: float
    output_token_throughput: float
    peak_in_flight: int
    schedule_lag_p99_ms: float | None = None
    client_limited: bool = False
    tokens_per_chunk: float | None = None
    tpot_undefined: int = 0
    metrics: dict[str, Distribution]
    vllm_aliases: dict[str, float] = Field(default_factory=dict)


class Fidelity(Record):
    """Agreement with the baseline on a text, token by token, both models behind HTTP."""

    text: str
    text_sha256: str
    windows: int
    window_tokens: int
    positions: int
    top_k: int
    method: Literal["intersection", "none"]
    perplexity: Estimate
    baseline_perplexity: Estimate | None = None
    perplexity_ratio: Estimate | None = None
    kl_lower_bound: Estimate | None = None
    tail_mass: float | None = None
    same_top_token: Estimate | None = None
    per_window_kl: list[float] = Field(default_factory=list)


class TaskScore(Record):
    """Accuracy on one task, alone and paired with the baseline.

    `part_of` names the task of which this is one kind of item (parts get no verdict). `detectable` is the
    smallest difference that this many items show with 80 % power at the observed share of flips.
    """

    task: str
    title: str
    source: str
    items: int
    metric: str = "acc"
    accuracy: Estimate
    baseline_accuracy: Estimate | None = None
    difference: Estimate | None = None
    recovery: Estimate | None = None
    flips: Estimate | None = None
    mcnemar_p: float | None = None
    margin: float | None = None
    verdict: Verdict | None = None
    items_needed: int | None = None
    part_of: str | None = None
    detectable: float | None = None


class TaskFigure(Record):
    """A figure of one task that is no share of its items: perplexity, F1, a bias score. No verdict."""

    task: str
    title: str
    source: str
    items: int
    metric: str
    lower_is_better: bool
    value: Estimate
    baseline_value: Estimate | None = None
    difference: Estimate | None = None


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
    figures: list[TaskFigure] = Field(default_factory=list)
    skipped: dict[str, str] = Field(default_factory=dict)
    incomplete: dict[str, str] = Field(default_factory=dict)
    verify: dict[str, Any] | None = None
    noise: dict[str, Any] | None = None

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
