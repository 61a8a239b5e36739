"""Percentiles with intervals, and the refusal to state one that the sample cannot carry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.load.figures.early_stopping import binomial_cdf, upper_bound
from qdeploy.bench.records import Distribution, Percentile

QUANTILES = (0.5, 0.9, 0.95, 0.99)
CONFIDENCE = 0.95


def samples_needed(q: float) -> int:
    """The least n with 1 - q^n >= 0.95, so that the sample most likely reaches beyond the percentile."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(q))


def order_ranks(n: int, q: float) -> tuple[int, int]:
    """1-based ranks (l, u) with P(X_(l) <= quantile <= X_(u)) >= 0.95, each tail at most 0.025.

    l = 0 or u = n + 1 mean that the sample has no such bound. The number of samples below the quantile is
    binomial(n, q), whatever the distribution (David & Nagaraja, Order Statistics, section 7.1).
    """
    below = binomial_cdf(n, q)
    tail = (1 - CONFIDENCE) / 2
    return int(np.searchsorted(below, tail)), int(np.searchsorted(below, 1 - tail)) + 1


def percentile(ordered: NDArray[np.float64], q: float, independent: bool) -> Percentile:
    """Percentile `q` of ascending `ordered` by linear interpolation; no value below the sample floor."""
    n, needed = len(ordered), samples_needed(q)
    found = Percentile(q=q, value=None, needed=needed)
    if n < needed:
        return found
    found.value = float(np.quantile(ordered, q))
    if independent:
        low, high = order_ranks(n, q)
        found.low = float(ordered[low - 1]) if low >= 1 else None
        found.high = float(ordered[high - 1]) if high <= n else None
        found.bound = upper_bound(ordered, q)
    return found


def distribution(values: Sequence[float], independent: bool = True) -> Distribution:
    """Count, mean and percentiles of `values`, in their unit.

    Values that are not `independent` (gaps within one answer) get no intervals: order statistics would make
    them far too narrow.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return Distribution(
        count=len(ordered),
        mean=float(ordered.mean()) if len(ordered) else None,
        percentiles=[percentile(ordered, q, independent) for q in QUANTILES],
    )
