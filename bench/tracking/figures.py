"""A run record as MLflow has it: tags, parameters, metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from qdeploy.bench.records import Estimate, Fidelity, LoadResult, RunRecord, TaskScore

LONGEST = 500
"""Characters of a parameter's value; the least of what MLflow's stores take."""

LOAD = ("request_throughput", "output_token_throughput", "achieved_rate", "duration_s", "completed", "failed")
TEXT = ("perplexity", "perplexity_ratio", "kl_lower_bound", "same_top_token")
TASK = ("accuracy", "difference", "recovery", "flips")


def tags_of(record: RunRecord) -> dict[str, str]:
    """What runs are looked for by."""
    verdicts = {task.verdict for task in record.tasks if task.part_of is None and task.verdict}
    found = {
        "kind": record.kind,
        "model": record.engine.model,
        "engine": record.engine.name,
        "engine_version": record.engine.version,
        "kernel": record.engine.kernel,
        "version": record.provenance.get("qdeploy"),
        "verdict": ", ".join(sorted(verdicts)) or None,
        "invalid": "; ".join(record.load.invalid) or None if record.load else None,
    }
    return {f"qdeploy.{key}": str(value) for key, value in found.items() if value is not None}


def params_of(record: RunRecord) -> dict[str, str]:
    """The settings, and the arguments of the engine."""
    found = record.settings | {"engine_arguments": " ".join(record.engine.arguments)}
    return {_name(key): str(value)[:LONGEST] for key, value in found.items() if value not in (None, "")}


def metrics_of(record: RunRecord) -> dict[str, float]:
    """Every headline figure; of one with an interval also `_low` and `_high`."""
    found: dict[str, float | None] = {}
    if record.load:
        found |= dict(_load(record.load))
    if record.fidelity:
        found |= dict(_estimates(record.fidelity, TEXT, ""))
    for task in [task for task in record.tasks if task.part_of is None]:
        found |= dict(_estimates(task, TASK, f"{task.task}.{task.metric}."))
    for key in ("ratio", "served_rms"):
        found[key] = (record.verify or {}).get(key)
    return {
        _name(key): float(value) for key, value in found.items() if value is not None and math.isfinite(value)
    }


def _load(load: LoadResult) -> Iterator[tuple[str, float | None]]:
    for name in LOAD:
        yield name, getattr(load, name)
    for metric, distribution in load.metrics.items():
        yield f"{metric}_mean", distribution.mean
        for percentile in distribution.percentiles:
            yield f"{metric}_p{percentile.q * 100:g}", percentile.value
    if load.slo:
        yield from _bounds("goodput", load.slo.goodput)
        yield "slo_met", float(load.slo.met)
    if load.cost:
        yield "cost_per_million_output_tokens", load.cost.per_million_output_tokens


def _estimates(
    of: Fidelity | TaskScore, names: tuple[str, ...], prefix: str
) -> Iterator[tuple[str, float | None]]:
    for name in names:
        if (found := getattr(of, name)) is not None:
            yield from _bounds(prefix + name, found)


def _bounds(name: str, found: Estimate) -> Iterator[tuple[str, float | None]]:
    yield name, found.value
    yield f"{name}_low", found.low
    yield f"{name}_high", found.high


def _name(key: str) -> str:
    """What MLflow takes as a name."""
    return re.sub(r"[^\w\-. /]", "_", key)


def campaign_tags(verdict: str, recommended: str | None) -> Mapping[str, str]:
    """What campaigns are looked for by."""
    found: dict[str, Any] = {"kind": "campaign", "verdict": verdict, "recommended": recommended}
    return {f"qdeploy.{key}": str(value) for key, value in found.items() if value is not None}
