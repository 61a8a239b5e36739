"""Answers that are right or wrong under two models: what changed, and how sure that is."""

from __future__ import annotations

import math

import numpy as np

from qdeploy.bench.records import Estimate
from qdeploy.bench.statistics.intervals import CONFIDENCE, Array, high_of, low_of, wilson


def contingency(baseline: Array, variant: Array) -> tuple[int, int, int, int]:
    """Counts of both right, lost, gained, neither right."""
    was, now = baseline > 0, variant > 0
    both, lost, gained = (int(np.count_nonzero(x)) for x in (was & now, was & ~now, ~was & now))
    return both, lost, gained, len(baseline) - both - lost - gained


def changes(baseline: Array, variant: Array) -> tuple[int, int]:
    """How many items were lost and gained."""
    return contingency(baseline, variant)[1:3]


def newcombe(both: int, lost: int, gained: int, neither: int, confidence: float = CONFIDENCE) -> Estimate:
    """Difference of paired proportions, second minus first, with Newcombe's method 10 (Newcombe 1998).

    `lost` are right for the first only, `gained` for the second only. Sound where few or no items differ.
    """
    n = both + lost + gained + neither
    first, second = wilson(both + lost, n, confidence), wilson(both + gained, n, confidence)
    phi = _phi(both, lost, gained, neither)
    delta = (gained - lost) / n
    below = _score_distance(second.value - low_of(second), high_of(first) - first.value, phi)
    above = _score_distance(high_of(second) - second.value, first.value - low_of(first), phi)
    return Estimate(value=delta, low=delta - below, high=delta + above)


def _phi(both: int, lost: int, gained: int, neither: int) -> float:
    """Correlation of the two answers, with Newcombe's continuity correction."""
    product = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if product == 0:
        return 0.0
    excess = both * neither - lost * gained
    corrected = max(excess - (both + lost + gained + neither) / 2, 0.0) if excess > 0 else excess
    return corrected / math.sqrt(product)


def _score_distance(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided mid-p that losses and gains are equally likely; nothing changed: 1.

    The exact binomial p less the probability of what was observed: the exact test alone is too timid
    (Fagerland, Lydersen & Laake 2013). It treats items as independent.
    """
    changed = lost + gained
    fewer = min(lost, gained)
    ways = tail = 1
    for k in range(1, fewer + 1):
        ways = ways * (changed - k + 1) // k
        tail += ways
    return min((2 * tail - ways) / (1 << changed), 1.0) if changed else 1.0
