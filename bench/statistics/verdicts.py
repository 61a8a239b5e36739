"""Non-inferiority: is at least a given share of the baseline's score left? Three-valued.

MLPerf Inference asks for 99 % or 99.9 % of the reference's accuracy (its closed division's two constraints);
here the same is asked with the uncertainty of the items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qdeploy.bench.records import Estimate, Verdict
from qdeploy.bench.statistics.contingency import changes, mcnemar
from qdeploy.bench.statistics.intervals import Array, high_of
from qdeploy.bench.statistics.paired import Pairs, changes_only, moments, suite_recovery
from qdeploy.bench.statistics.quantiles import student_cdf

LEVEL = 0.05
"""One-sided: how often a model that is exactly at the margin may pass, and how often it may fail."""
MARGINS = (0.01, 0.001)
"""MLPerf's two: 99 % and 99.9 % of the baseline."""


def recovery_bounds(tasks: Sequence[Pairs], level: float = LEVEL) -> Estimate | None:
    """Recovery with a lower and an upper bound that each err in a share `level` of runs."""
    return suite_recovery(tasks, 1 - 2 * level)


def judge(bounds: Estimate | None, margin: float) -> Verdict:
    """pass: the lower bound is above 1 - margin; fail: the upper one is below; else inconclusive."""
    if bounds is None or bounds.low is None or bounds.high is None:
        return "inconclusive"
    if bounds.low > 1 - margin:
        return "pass"
    return "fail" if bounds.high < 1 - margin else "inconclusive"


def verdict(
    baseline: Array, variant: Array, clusters: Sequence[str], margin: float, level: float = LEVEL
) -> Verdict | None:
    """Is at least 1 - margin of the baseline's score left? None where there is one cluster."""
    if len(set(clusters)) < 2:
        return None
    return judge(recovery_bounds([Pairs(baseline, variant, clusters)], level), margin)


def inferiority_p(tasks: Sequence[Pairs], margin: float) -> float:
    """One-sided p that the variant keeps 1 - margin: below a level exactly where `judge` fails it there."""
    found = moments(tasks)
    excess, slack = found.variant - (1 - margin) * found.baseline, margin * found.baseline
    if found.df == 0 or excess >= 0:
        return 1.0
    error = found.error(1 - margin)
    by_cluster = student_cdf(excess / error, found.df) if error else 0.0
    return max(by_cluster, _changes_p(tasks, slack))


def _changes_p(tasks: Sequence[Pairs], slack: float) -> float:
    """The least level at which Newcombe's upper bound is below -slack, by bisection; 0 where it has none."""
    low, high = 0.0, 0.5
    for _ in range(40):
        middle = (low + high) / 2
        bounds = changes_only(tasks, confidence=1 - 2 * middle)
        if bounds is None:
            return 0.0
        low, high = (low, middle) if high_of(bounds) < -slack else (middle, high)
    return high


def difference_p(pairs: Pairs) -> float:
    """Two-sided p that the models score alike: the larger of a t-test's over clusters and McNemar's mid-p."""
    found = moments([pairs])
    if found.df == 0:
        return 1.0
    error = found.error(1.0)
    t = abs(found.difference) / error if error else math.inf if found.difference else 0.0
    by_cluster = 2 * student_cdf(-t, found.df)
    if not pairs.is_binary:
        return by_cluster
    return max(by_cluster, mcnemar(*changes(pairs.baseline, pairs.variant)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order; rejecting those below α errs at all in at most a share α of runs.

    Holm 1979: the k-th smallest of m is multiplied by m - k + 1 and made no smaller than those before it.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = running
    return adjusted


def overall(
    verdicts: Sequence[Verdict], failing: Sequence[float], pooled: Verdict | None = None
) -> Verdict | None:
    """One verdict over tasks that is wrong in at most a share LEVEL of runs either way.

    fail: a p of `inferiority_p` is below LEVEL after Holm. Else pass: the suite's mean passes or, where there
    is no suite, every task, which needs no adjustment (Berger 1982). Else inconclusive; None without tasks.

    Args:
        failing: the p of every task and, where there is one, of the suite.
        pooled: the suite's verdict.
    """
    if not verdicts:
        return None
    if min(holm(failing)) < LEVEL:
        return "fail"
    passed = pooled == "pass" if pooled else all(verdict == "pass" for verdict in verdicts)
    return "pass" if passed else "inconclusive"
