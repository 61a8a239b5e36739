"""Latency of two variants. Requests of one run wait for one another, so runs are what is independent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qdeploy.bench.records import Estimate
from qdeploy.bench.statistics.intervals import CONFIDENCE
from qdeploy.bench.statistics.quantiles import satterthwaite, student_quantile


def ratio_of_runs(baseline: Sequence[float], variant: Sequence[float]) -> Estimate | None:
    """The ratio of the typical run of the variant to that of the baseline, from one figure a run.

    Welch's t interval on logarithms (Welch 1947; degrees of freedom rounded down), so it is a ratio of
    geometric means and covers what differs from run to run.

    Returns:
        None with fewer than two runs of either, or where a figure is not positive.
    """
    if min(len(baseline), len(variant)) < 2 or min(*baseline, *variant) <= 0:
        return None
    logs = [np.log(np.asarray(runs, dtype=np.float64)) for runs in (baseline, variant)]
    difference = float(logs[1].mean() - logs[0].mean())
    parts = [float(log.var(ddof=1)) / len(log) for log in logs]
    error = math.sqrt(sum(parts))
    df = satterthwaite(parts, [len(log) - 1 for log in logs])
    half = error * student_quantile((1 + CONFIDENCE) / 2, df)
    return Estimate(
        value=math.exp(difference), low=math.exp(difference - half), high=math.exp(difference + half)
    )
