"""What a run's figures are worth: its objective, its cost, and the reasons not to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qdeploy.bench.load.figures.objective import judge
from qdeploy.bench.load.figures.outcome import Outcome
from qdeploy.bench.load.figures.steady import steady_window
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.workload.target import Target
from qdeploy.bench.load.workload.workload import Workload
from qdeploy.bench.records import Cost, Estimate, LoadResult, Telemetry

MAX_UNEXPLAINED_HITS = 0.01
"""Share of prompt tokens from the prefix cache that what was sent does not explain."""

LENGTH_KEPT = (0.9, 1.1)
"""Bounds of the mean output length over the baseline's, MLPerf's for tokens per sample."""


def assess(
    result: LoadResult,
    spec: LoadSpec,
    target: Target,
    workload: Workload,
    outcomes: Sequence[Outcome],
    telemetry: Telemetry | None,
) -> None:
    """Fill in everything about `result` that the latencies alone do not tell."""
    result.source = Path(spec.trace or spec.dataset or "").name
    result.prompts_sha256, result.left_out = workload.prompts_sha256, workload.left_out
    result.steady = steady_window(outcomes, spec.concurrency)
    if spec.limits:
        result.slo = judge(spec.limits, outcomes, result.duration_s)
        result.vllm_aliases["request_goodput"] = result.slo.goodput.value
    if spec.price_per_hour and result.output_tokens:
        result.cost = _cost(result, spec.price_per_hour)
    if telemetry:
        telemetry.prefix_explained = _explained(target, workload, outcomes)
        joules = sum(gpu.energy_j for gpu in telemetry.gpus)
        telemetry.output_tokens_per_joule = result.output_tokens / joules if joules else None
        result.telemetry = telemetry
        result.invalid += _cache_trouble(telemetry)


def compare_lengths(result: LoadResult, outcomes: Sequence[Outcome], baseline: Sequence[int]) -> None:
    """Set the mean output length against that of the `baseline` run's requests, in tokens.

    A model that stops early looks faster than it is: beyond LENGTH_KEPT the run is invalid.
    """
    ours = np.array([o.output_tokens or 0 for o in outcomes if o.error is None], dtype=np.float64)
    ratio = _ratio_of_means(ours, np.array(baseline, dtype=np.float64))
    result.output_length_ratio = ratio
    low, high = LENGTH_KEPT
    if not low <= ratio.value <= high:
        result.invalid.append(
            f"answers have {ratio.value:.0%} of the baseline's length, outside {low:.0%} to {high:.0%}: "
            "its speed is not comparable"
        )


def _ratio_of_means(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    """Ratio of two independent means with a 95 % interval by the delta method on the log scale."""
    value = float(ours.mean() / theirs.mean())
    if min(len(ours), len(theirs)) < 2:
        return Estimate(value=value)
    variance = sum(float(x.var(ddof=1)) / len(x) / float(x.mean()) ** 2 for x in (ours, theirs))
    factor = float(np.exp(1.96 * np.sqrt(variance)))
    return Estimate(value=value, low=value / factor, high=value * factor)


def _cost(result: LoadResult, price_per_hour: float) -> Cost:
    spent = price_per_hour * result.duration_s / 3600
    return Cost(
        price_per_hour=price_per_hour,
        per_million_output_tokens=spent / result.output_tokens * 1e6,
        per_million_tokens=spent / (result.input_tokens + result.output_tokens) * 1e6,
    )


def _explained(target: Target, workload: Workload, outcomes: Sequence[Outcome]) -> int:
    """Prompt tokens that the prefix cache may rightly have held.

    These are the chat template around every prompt, the blocks that a trace repeats, and for each later turn
    of a conversation the turn before it with its answer.
    """
    followed = {index for session in workload.sessions for index in session[:-1]}
    turns = sum((o.prompt_tokens or 0) + (o.output_tokens or 0) for o in outcomes if o.index in followed)
    return workload.repeated_tokens + target.template_tokens * len(outcomes) + turns


def _cache_trouble(telemetry: Telemetry) -> list[str]:
    queries, hits = telemetry.prefix_queries, telemetry.prefix_hits
    if not queries or not hits:
        return []
    unexplained = (hits - telemetry.prefix_explained) / queries
    if unexplained <= MAX_UNEXPLAINED_HITS:
        return []
    return [
        f"{unexplained:.1%} of the prompt tokens came from the prefix cache, which nothing that was sent "
        "explains: restart the server, reset its cache or use another salt"
    ]
