"""Latency percentiles of two sides. With several runs of each the run is the unit, else requests are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from qdeploy.bench.records import Estimate, LoadResult, Percentile, Record
from qdeploy.bench.report.compare import percentile, ratio
from qdeploy.bench.statistics import ratio_of_runs


class LatencyChange(Record):
    """One percentile of one latency on both sides, ms; with several runs, the median over runs.

    `value` and `baseline` are None where a run has fewer than `needed` requests. `unit` says what the
    interval of `ratio` is over; requests of one run do not tell what differs from run to run.
    """

    metric: str
    q: float
    value: float | None
    baseline: float | None
    needed: int
    ratio: Estimate | None
    unit: Literal["runs", "requests"]


def latency_changes(baseline: Sequence[LoadResult], variant: Sequence[LoadResult]) -> list[LatencyChange]:
    """Every percentile that both sides have taken, in the order of the variant's first run."""
    found = []
    for metric, distribution in variant[0].metrics.items():
        for p in distribution.percentiles:
            sides = [_values(runs, metric, p.q) for runs in (baseline, variant)]
            if all(sides):
                found.append(_change(metric, p, sides[0], sides[1]))
    return found


def _values(runs: Sequence[LoadResult], metric: str, q: float) -> list[Percentile]:
    found = [percentile(run.metrics.get(metric), q) for run in runs]
    return [p for p in found if p is not None]


def _change(
    metric: str, p: Percentile, baseline: Sequence[Percentile], variant: Sequence[Percentile]
) -> LatencyChange:
    theirs, ours = [b.value for b in baseline], [v.value for v in variant]
    by_run = min(len(baseline), len(variant)) > 1
    return LatencyChange(
        metric=metric,
        q=p.q,
        value=_median(ours),
        baseline=_median(theirs),
        needed=p.needed,
        ratio=_ratio_of_runs(theirs, ours) if by_run else _ratio_of_requests(baseline, variant),
        unit="runs" if by_run else "requests",
    )


def _ratio_of_runs(theirs: Sequence[float | None], ours: Sequence[float | None]) -> Estimate | None:
    known = [[value for value in values if value is not None] for values in (theirs, ours)]
    return ratio_of_runs(*known) if len(known[0]) == len(theirs) and len(known[1]) == len(ours) else None


def _ratio_of_requests(baseline: Sequence[Percentile], variant: Sequence[Percentile]) -> Estimate | None:
    """None also for one run against several: neither unit serves both."""
    return ratio(variant[0], baseline[0]) if len(baseline) == len(variant) else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if len(known) == len(values) else None
