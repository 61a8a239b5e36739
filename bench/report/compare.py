"""A variant against the baseline, where the records themselves do not hold the comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable

from qdeploy.bench import statistics
from qdeploy.bench.records import Distribution, Estimate, Percentile, TaskScore, Verdict


def percentile(distribution: Distribution | None, q: float) -> Percentile | None:
    """The percentile `q` (a fraction) of a distribution, None where it was not taken."""
    if distribution is None:
        return None
    return next((p for p in distribution.percentiles if math.isclose(p.q, q)), None)


def ratio(variant: Percentile | None, baseline: Percentile | None) -> Estimate | None:
    """The ratio of two independent percentiles with a 95 % interval.

    The interval combines those of the two percentiles on the log scale by MOVER (Zou & Donner 2008,
    Statistics in Medicine 27, 1693-1702), so it is as wide as the order statistics make it and assumes no
    distribution. It covers variation between requests of one run, not between runs.

    Returns:
        None where either percentile was refused, zero or has no interval.
    """
    if variant is None or baseline is None:
        return None
    figures = (variant.value, variant.low, variant.high, baseline.value, baseline.low, baseline.high)
    logs = [math.log(f) for f in figures if f is not None and f > 0]
    if len(logs) < len(figures):
        return None
    v, v_low, v_high, b, b_low, b_high = logs
    below, above = math.hypot(v - v_low, b_high - b), math.hypot(v_high - v, b - b_low)
    return Estimate(value=math.exp(v - b), low=math.exp(v - b - below), high=math.exp(v - b + above))


def significant(estimate: Estimate, null: float) -> bool:
    """Whether the interval leaves out the value that means "no difference"."""
    if estimate.low is None or estimate.high is None:
        return False
    return not estimate.low <= null <= estimate.high


def overall(tasks: Iterable[TaskScore], suite: TaskScore | None = None) -> Verdict | None:
    """One verdict over the tasks (`statistics.overall`); verdicts without a p count as they stand."""
    judged = [task for task in tasks if task.verdict]
    pooled = suite.verdict if suite else None
    failing = [_failing(task) for task in (*judged, *([suite] if suite and pooled else []))]
    return statistics.overall([task.verdict for task in judged if task.verdict], failing, pooled)


def _failing(task: TaskScore) -> float:
    return float(task.verdict != "fail") if task.inferiority_p is None else task.inferiority_p
