"""The difference and the ratio of two models' scores on the same items, of one task or of a suite.

A suite's score is the plain mean of its tasks' scores, whatever their sizes. Clusters are kept: their labels
are taken as they stand, so a passage that two tasks ask about is one cluster in both.

Every interval is the wider of two: one over clusters, which collapses where few items changed, and for scores
of 0 and 1 Newcombe's, which knows nothing of clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdeploy.bench.records import Estimate
from qdeploy.bench.statistics.contingency import contingency, newcombe
from qdeploy.bench.statistics.intervals import (
    CONFIDENCE,
    Array,
    cluster_codes,
    high_of,
    is_binary,
    low_of,
    widest,
)
from qdeploy.bench.statistics.quantiles import satterthwaite, student_quantile


@dataclass(frozen=True)
class Pairs:
    """Scores of the same items of one task, float64 [n], with one cluster label an item."""

    baseline: Array
    variant: Array
    clusters: Sequence[str]

    @property
    def is_binary(self) -> bool:
        """Whether all scores are 0 or 1."""
        return is_binary(self.baseline) and is_binary(self.variant)


@dataclass(frozen=True)
class Moments:
    """Two mean scores, their covariance over clusters [2, 2] and its degrees of freedom (0: none)."""

    baseline: float
    variant: float
    covariance: Array
    df: int

    @property
    def difference(self) -> float:
        """Variant minus baseline."""
        return self.variant - self.baseline

    def error(self, ratio: float) -> float:
        """Standard error of variant - ratio · baseline."""
        weights = np.array([-ratio, 1.0])
        return math.sqrt(max(float(weights @ self.covariance @ weights), 0.0))

    def quantile(self, confidence: float) -> float:
        """Student's t of a two-sided interval."""
        return student_quantile((1 + confidence) / 2, self.df)


def moments(tasks: Sequence[Pairs]) -> Moments:
    """Moments of the mean over tasks; without covariance where a task has a single cluster.

    Each item weighs 1/(tasks · n_t); residuals are from the task's own means and summed by cluster. The
    degrees of freedom are Welch and Satterthwaite's over the tasks' variances of the difference.
    """
    groups = [len(set(task.clusters)) for task in tasks]
    means = np.array([(task.baseline.mean(), task.variant.mean()) for task in tasks])
    baseline, variant = means.mean(0).tolist()
    if min(groups) < 2:
        return Moments(baseline, variant, covariance=np.full((2, 2), math.nan), df=0)
    parts = []
    for task, mean, count in zip(tasks, means, groups, strict=True):
        scores = np.stack([task.baseline, task.variant])
        weight = math.sqrt(count / (count - 1)) / (len(tasks) * scores.shape[1])
        parts.append((scores - mean[:, None]) * weight)
    residuals = np.concatenate(parts, axis=1)
    codes, total = cluster_codes([label for task in tasks for label in task.clusters])
    sums: Array = np.stack([np.bincount(codes, row, minlength=total) for row in residuals])
    variances = [_variance(part, task.clusters) for part, task in zip(parts, tasks, strict=True)]
    df = satterthwaite(variances, [count - 1 for count in groups])
    return Moments(baseline, variant, covariance=sums @ sums.T, df=df)


def _variance(part: Array, clusters: Sequence[str]) -> float:
    """Of the difference, from one task's weighted residuals [2, n]."""
    sums = np.bincount(cluster_codes(clusters)[0], part[1] - part[0])
    return float(sums @ sums)


def suite_mean(tasks: Sequence[Pairs], confidence: float = CONFIDENCE) -> Estimate:
    """The variant's mean score alone, over clusters."""
    found = moments(tasks)
    if found.df == 0:
        return Estimate(value=found.variant)
    half = found.quantile(confidence) * found.error(0.0)
    return Estimate(value=found.variant, low=found.variant - half, high=found.variant + half)


def suite_difference(tasks: Sequence[Pairs], confidence: float = CONFIDENCE) -> Estimate:
    """Mean score of the variant minus the baseline's."""
    found, paired = moments(tasks), changes_only(tasks, confidence)
    if found.df == 0:
        return paired or Estimate(value=found.difference)
    half = found.quantile(confidence) * found.error(1.0)
    by_cluster = Estimate(value=found.difference, low=found.difference - half, high=found.difference + half)
    return widest(by_cluster, paired) if paired else by_cluster


def changes_only(tasks: Sequence[Pairs], confidence: float) -> Estimate | None:
    """Newcombe's intervals of the tasks, joined by MOVER (Zou & Donner 2008); None unless all are 0 and 1."""
    if not all(task.is_binary for task in tasks):
        return None
    found = [newcombe(*contingency(task.baseline, task.variant), confidence) for task in tasks]
    value = sum(e.value for e in found) / len(found)
    below = math.hypot(*(e.value - low_of(e) for e in found)) / len(found)
    above = math.hypot(*(high_of(e) - e.value for e in found)) / len(found)
    return Estimate(value=value, low=value - below, high=value + above)


def suite_recovery(tasks: Sequence[Pairs], confidence: float = CONFIDENCE) -> Estimate | None:
    """The share of the baseline's mean score that is left, R = v̄/b̄.

    Over clusters the interval is Fieller's (1954): all R for which v̄ - R·b̄ is within t·SE(v - R·b) of 0, so
    that it leaves out 1 - margin exactly where the non-inferiority test at that margin decides. Newcombe's is
    1 + (its bounds of the difference)/b̄.

    Returns:
        None where the baseline scored 0; no bounds where a task has one cluster or the baseline's score is
        not told from 0.
    """
    found, paired = moments(tasks), changes_only(tasks, confidence)
    if found.baseline <= 0:
        return None
    by_cluster = _fieller(found, confidence) if found.df else None
    if by_cluster is None:
        return Estimate(value=found.variant / found.baseline)
    if paired is None:
        return by_cluster
    low, high = (1 + bound / found.baseline for bound in (low_of(paired), high_of(paired)))
    return widest(by_cluster, Estimate(value=by_cluster.value, low=low, high=high))


def _fieller(found: Moments, confidence: float) -> Estimate | None:
    """Roots of (v̄ - R·b̄)² = t²·(S_vv - 2R·S_vb + R²·S_bb); None where they do not enclose v̄/b̄."""
    t2 = found.quantile(confidence) ** 2
    (bb, bv), (_, vv) = t2 * found.covariance
    a = found.baseline**2 - bb
    if a <= 0:
        return None
    half_b, c = found.baseline * found.variant - bv, found.variant**2 - vv
    root = math.sqrt(max(half_b * half_b - a * c, 0.0))
    return Estimate(value=found.variant / found.baseline, low=(half_b - root) / a, high=(half_b + root) / a)


def paired_difference(
    baseline: Array, variant: Array, clusters: Sequence[str], confidence: float = CONFIDENCE
) -> Estimate:
    """`suite_difference` of one task."""
    return suite_difference([Pairs(baseline, variant, clusters)], confidence)


def recovery(
    baseline: Array, variant: Array, clusters: Sequence[str], confidence: float = CONFIDENCE
) -> Estimate | None:
    """`suite_recovery` of one task."""
    return suite_recovery([Pairs(baseline, variant, clusters)], confidence)
