"""Uncertainty of a comparison between two models that answered the same items.

Items of one template, passage or window are not independent, so every standard error is by cluster, and every
interval is paired. Binary scores are 0.0 or 1.0; `clusters` holds one label an item. Arrays are float64 [n].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.records import Estimate, Verdict

Array = NDArray[np.float64]
CONFIDENCE = 0.95
POWER = 0.80
RESAMPLES = 5_000


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(probability)


def student_cdf(t: float, df: int) -> float:
    """P(T <= t) for integer degrees of freedom, by the finite series of Abramowitz & Stegun 26.7.3-4."""
    theta = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(theta), math.sin(theta)
    term, total = (1.0, 0.0) if df % 2 == 0 else (cosine, theta)
    for j in range(df % 2, df - 1, 2):
        total += sine * term
        term *= cosine * cosine * (j + 1) / (j + 2)
    within = total if df % 2 == 0 else 2 / math.pi * total
    return 0.5 + within / 2


@cache
def student_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t for `probability` in [0.5, 1), by bisection of its distribution function."""
    low, high = 0.0, 1.0
    while student_cdf(high, df) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, df) < probability else (low, middle)
    return (low + high) / 2


def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927)."""
    z = normal_quantile((1 + confidence) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(value=p, low=min(p, centre - half), high=max(p, centre + half))


def cluster_codes(clusters: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Number the labels: codes int64 [n] and how many there are."""
    labels, codes = np.unique(np.asarray(clusters), return_inverse=True)
    return codes.astype(np.int64), len(labels)


def clustered_error(values: Array, clusters: Sequence[str]) -> tuple[float, int]:
    """Standard error of the mean and its degrees of freedom (clusters - 1; 0 means that it cannot be had).

    SE² = G/(G-1) · 1/n² · Σ_c (Σ_{i∈c} (v_i - v̄))² (Miller, arXiv 2411.00640, with the small-sample factor of
    Cameron & Miller 2015). With one item a cluster it is sd/√n.
    """
    codes, groups = cluster_codes(clusters)
    if groups < 2:
        return math.nan, 0
    sums = np.bincount(codes, weights=values - values.mean(), minlength=groups)
    return math.sqrt(groups / (groups - 1) * float(sums @ sums)) / len(values), groups - 1


def mean_interval(values: Array, clusters: Sequence[str], confidence: float = CONFIDENCE) -> Estimate:
    """The mean with Student's t interval over clusters; no interval where there is only one cluster."""
    error, df = clustered_error(values, clusters)
    mean = float(values.mean())
    if df == 0:
        return Estimate(value=mean)
    half = student_quantile((1 + confidence) / 2, df) * error
    return Estimate(value=mean, low=mean - half, high=mean + half)


def accuracy_interval(correct: Array, clusters: Sequence[str]) -> Estimate:
    """A proportion with the wider of Wilson's interval and the one over clusters, within [0, 1].

    Wilson's alone ignores clusters; the other collapses where all items agree.
    """
    return _clip(
        _widest(wilson(int(correct.sum()), len(correct)), mean_interval(correct, clusters)), 0.0, 1.0
    )


def newcombe(both: int, lost: int, gained: int, neither: int, confidence: float = CONFIDENCE) -> Estimate:
    """Difference of paired proportions, second minus first, with Newcombe's method 10 (Newcombe 1998).

    `lost` are right for the first only, `gained` for the second only. Sound where few or no items differ.
    """
    n = both + lost + gained + neither
    first, second = wilson(both + lost, n, confidence), wilson(both + gained, n, confidence)
    phi = _phi(both, lost, gained, neither)
    delta = (gained - lost) / n
    below = _score_distance(second.value - _low(second), _high(first) - first.value, phi)
    above = _score_distance(_high(second) - second.value, first.value - _low(first), phi)
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


def paired_difference(
    baseline: Array, variant: Array, clusters: Sequence[str], confidence: float = CONFIDENCE
) -> Estimate:
    """Accuracy of the variant minus the baseline's, with the wider of clustered and Newcombe's interval."""
    by_cluster = mean_interval(variant - baseline, clusters, confidence)
    return _widest(newcombe(*_contingency(baseline, variant), confidence), by_cluster)


def recovery(baseline: Array, variant: Array, clusters: Sequence[str]) -> Estimate | None:
    """The share of the baseline's accuracy that is left, R = v̄/b̄, with SE(R) = SE(v - R·b)/b̄ (delta method).

    None where the baseline got nothing right.
    """
    if not baseline.any():
        return None
    ratio = float(variant.mean() / baseline.mean())
    residual = mean_interval(variant - ratio * baseline, clusters)
    if residual.low is None or residual.high is None:
        return Estimate(value=ratio)
    scale = float(baseline.mean())
    return Estimate(value=ratio, low=ratio + residual.low / scale, high=ratio + residual.high / scale)


def flips(baseline: Array, variant: Array) -> Estimate:
    """Share of items whose correctness changed, either way (arXiv 2407.09141), with Wilson's interval."""
    return wilson(int(np.count_nonzero(baseline != variant)), len(baseline))


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p that losses and gains are equally likely: exact binomial, mid-p below 50 changed items.

    Mid-p because the exact test is too timid there (Fagerland, Lydersen & Laake 2013). Nothing changed: 1.
    """
    changed = lost + gained
    if changed == 0:
        return 1.0
    fewer = min(lost, gained)
    ways = tail = 1
    for k in range(1, fewer + 1):
        ways = ways * (changed - k + 1) // k
        tail += ways
    two_sided = 2 * tail - (ways if changed < 50 else 0)
    return min(two_sided / (1 << changed), 1.0)


def verdict(baseline: Array, variant: Array, clusters: Sequence[str], margin: float) -> Verdict | None:
    """Is the variant's accuracy no worse than (1 - margin) of the baseline's, one-sided at 5 %?

    The statistic is the mean of e_i = v_i - (1 - margin)·b_i: above 0 at its lower 95 % bound passes, below 0
    at its upper one fails, else there are too few items to tell. Bounds are the wider of the clustered and
    Newcombe's. None where there is but one cluster.
    """
    slack = margin * float(baseline.mean())
    excess = mean_interval(variant - (1 - margin) * baseline, clusters, confidence=0.90)
    if excess.low is None or excess.high is None:
        return None
    paired = newcombe(*_contingency(baseline, variant), confidence=0.90)
    if min(excess.low, _low(paired) + slack) > 0:
        return "pass"
    return "fail" if max(excess.high, _high(paired) + slack) < 0 else "inconclusive"


def items_for_verdict(churn: float, slack: float, design: float = 1.0) -> int:
    """Items needed to show non-inferiority with 80 % power, one-sided 5 %, when the truth is no difference.

    n = design · (z₀.₉₅ + z₀.₈)² · churn / slack², with churn the share of items that flip and slack the
    margin in absolute accuracy.
    """
    z = normal_quantile(CONFIDENCE) + normal_quantile(POWER)
    return math.ceil(design * z * z * churn / (slack * slack))


def items_for_difference(churn: float, difference: float) -> int:
    """Items needed to see `difference` in accuracy with 80 % power, two-sided 5 % (Connor 1987).

    n = (z₀.₉₇₅·√ψ + z₀.₈·√(ψ - Δ²))² / Δ², with ψ the churn. Needs ψ >= |Δ|.
    """
    spread = math.sqrt(churn - difference * difference)
    root = normal_quantile(0.975) * math.sqrt(churn) + normal_quantile(POWER) * spread
    return math.ceil(root * root / (difference * difference))


def detectable_difference(churn: float, items: int) -> float | None:
    """The smallest difference that `items` items show with 80 % power, two-sided 5 %.

    None where so few items change that not even changes in one direction only would show.
    """
    if churn == 0 or items_for_difference(churn, churn) > items:
        return None
    low, high = 0.0, churn
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if items_for_difference(churn, middle) > items else (low, middle)
    return high


def design_effect(values: Array, clusters: Sequence[str]) -> float:
    """How much clustering inflates the variance of the mean, SE²_clustered / SE²_iid; at least 1."""
    variance = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    error, df = clustered_error(values, clusters)
    return max(error * error / variance, 1.0) if df and variance else 1.0


def bootstrap_mean(values: Array, clusters: Sequence[str], seed: int = 0) -> Estimate:
    """The mean with the percentile interval of resampled whole clusters (Efron & Tibshirani 1993, §13.3)."""
    codes, groups = cluster_codes(clusters)
    if groups < 2:
        return Estimate(value=float(values.mean()))
    sums, counts = np.bincount(codes, weights=values), np.bincount(codes)
    drawn = np.random.default_rng(seed).integers(groups, size=(RESAMPLES, groups))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value=float(values.mean()), low=float(low), high=float(high))


def _contingency(baseline: Array, variant: Array) -> tuple[int, int, int, int]:
    """Counts of both right, lost, gained, neither right."""
    was, now = baseline > 0, variant > 0
    return tuple(int(x.sum()) for x in (was & now, was & ~now, ~was & now, ~was & ~now))  # type: ignore[return-value]


def changes(baseline: Array, variant: Array) -> tuple[int, int]:
    """How many items were lost and gained."""
    return _contingency(baseline, variant)[1:3]


def _low(estimate: Estimate) -> float:
    return estimate.value if estimate.low is None else estimate.low


def _high(estimate: Estimate) -> float:
    return estimate.value if estimate.high is None else estimate.high


def _widest(first: Estimate, second: Estimate) -> Estimate:
    return Estimate(
        value=first.value, low=min(_low(first), _low(second)), high=max(_high(first), _high(second))
    )


def _clip(estimate: Estimate, low: float, high: float) -> Estimate:
    return Estimate(value=estimate.value, low=max(_low(estimate), low), high=min(_high(estimate), high))
