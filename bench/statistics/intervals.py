"""Intervals of one proportion or mean. Items of a cluster may err together; clusters are independent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.records import Estimate
from qdeploy.bench.statistics.quantiles import normal_quantile, student_quantile

Array = NDArray[np.float64]
CONFIDENCE = 0.95
RESAMPLES = 5_000
FEW_CLUSTERS = 8
DRAWN_AT_ONCE = 1_000_000
"""Cluster numbers held at once while resampling; bounds memory."""


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
    """The mean of scores in [0, 1] with an interval over clusters; of 0 and 1, the wider of it and Wilson's.

    Wilson's alone ignores clusters; the other collapses where all items agree.
    """
    by_cluster = mean_interval(correct, clusters)
    if not is_binary(correct):
        return _clip(by_cluster, 0.0, 1.0)
    return _clip(widest(wilson(int(correct.sum()), len(correct)), by_cluster), 0.0, 1.0)


def share(marked: NDArray[np.bool_], clusters: Sequence[str]) -> Estimate:
    """The share of items that are marked, with the interval of `accuracy_interval`."""
    return accuracy_interval(marked.astype(np.float64), clusters)


def is_binary(values: Array) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def design_effect(values: Array, clusters: Sequence[str]) -> float | None:
    """How much clustering inflates the variance of the mean, SE²_clustered / SE²_iid.

    Returns:
        None where either cannot be had.
    """
    variance = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    error, df = clustered_error(values, clusters)
    return error * error / variance if df and variance else None


def bootstrap_mean(values: Array, clusters: Sequence[str], seed: int = 0) -> Estimate:
    """The mean with the studentized interval of resampled whole clusters (Efron & Tibshirani 1993, §12.5).

    Of skewed values such as divergences it covers nearer to 95 % than the percentile interval. Below
    FEW_CLUSTERS it is Student's t interval.
    """
    codes, groups = cluster_codes(clusters)
    plain = mean_interval(values, clusters)
    if groups < FEW_CLUSTERS:
        return plain
    sums, counts = (np.bincount(codes, x).astype(np.float64) for x in (values, np.ones(len(values))))
    rng, error = np.random.default_rng(seed), clustered_error(values, clusters)[0]
    size = max(DRAWN_AT_ONCE // groups, 1)
    blocks = (rng.integers(groups, size=(size, groups)) for _ in range(math.ceil(RESAMPLES / size)))
    t = np.concatenate([_studentized(sums[drawn], counts[drawn], plain.value) for drawn in blocks])
    low, high = np.quantile(t, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(
        value=plain.value, low=plain.value - float(high) * error, high=plain.value - float(low) * error
    )


def _studentized(sums: Array, counts: Array, mean: float) -> Array:
    """(m* - m)/SE* of resamples [R, G] of cluster sums and sizes; 0 where all of a resample is alike."""
    groups, sizes = sums.shape[1], counts.sum(1)
    means = sums.sum(1) / sizes
    spread = ((sums - means[:, None] * counts) ** 2).sum(1)
    errors = np.sqrt(groups / (groups - 1) * spread) / sizes
    t: Array = np.divide(means - mean, errors, out=np.zeros(len(means)), where=errors > 0)
    return t


def low_of(estimate: Estimate) -> float:
    """The lower bound, or the value where there is none."""
    return estimate.value if estimate.low is None else estimate.low


def high_of(estimate: Estimate) -> float:
    """The upper bound, or the value where there is none."""
    return estimate.value if estimate.high is None else estimate.high


def widest(first: Estimate, second: Estimate) -> Estimate:
    """The value of the first with the outer bounds of both."""
    return Estimate(
        value=first.value, low=min(low_of(first), low_of(second)), high=max(high_of(first), high_of(second))
    )


def _clip(estimate: Estimate, low: float, high: float) -> Estimate:
    return Estimate(value=estimate.value, low=max(low_of(estimate), low), high=min(high_of(estimate), high))
