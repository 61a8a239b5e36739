"""Non-inferiority: is at least a given share of the baseline's score left? Three-valued.

MLPerf Inference asks for 99 % or 99.9 % of the reference's accuracy (its closed division's two constraints);
here the same is asked with the uncertainty of the items.
"""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.bench.records import Estimate, Verdict
from qdeploy.bench.statistics.contingency import changes, contingency, mcnemar, newcombe
from qdeploy.bench.statistics.intervals import Array, high_of, low_of
from qdeploy.bench.statistics.paired import Pairs, moments, suite_recovery
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
    """Is the variant's score no worse than (1 - margin) of the baseline's? None where there is one cluster."""
    if len(set(clusters)) < 2:
        return None
    return judge(recovery_bounds([Pairs(baseline, variant, clusters)], level), margin)


def inferiority_p(pairs: Pairs, margin: float) -> float:
    """One-sided p that the variant keeps 1 - margin: below `level` exactly where `verdict` fails it."""
    found = moments([pairs])
    excess, slack = found.variant - (1 - margin) * found.baseline, margin * found.baseline
    if found.df == 0 or excess >= 0:
        return 1.0
    error = found.error(1 - margin)
    by_cluster = student_cdf(excess / error, found.df) if error else 0.0
    return max(by_cluster, _newcombe_p(pairs, slack)) if pairs.is_binary else by_cluster


def _newcombe_p(pairs: Pairs, slack: float) -> float:
    """The least level at which Newcombe's upper bound of the difference is below -slack, by bisection."""
    counts = contingency(pairs.baseline, pairs.variant)
    low, high = 0.0, 0.5
    for _ in range(40):
        middle = (low + high) / 2
        excluded = middle > 0 and high_of(newcombe(*counts, confidence=1 - 2 * middle)) < -slack
        low, high = (low, middle) if excluded else (middle, high)
    return high


def difference_p(pairs: Pairs) -> float:
    """Two-sided p that the models score alike: the larger of the t-test's over clusters and mid-p McNemar's."""
    found = moments([pairs])
    if found.df == 0:
        return 1.0
    error = found.error(1.0)
    by_cluster = 2 * student_cdf(-abs(found.difference) / error, found.df) if error else float(not found.difference)
    return max(by_cluster, mcnemar(*changes(pairs.baseline, pairs.variant))) if pairs.is_binary else by_cluster


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


def overall(verdicts: Sequence[Verdict], failing: Sequence[float], level: float = LEVEL) -> Verdict | None:
    """One verdict over tasks, wrong in at most a share `level` of runs either way.

    pass: every task passes, which needs no adjustment (Berger 1982); fail: a task's `failing` p (that of
    `inferiority_p`) is below the level after Holm; else inconclusive. None without tasks.
    """
    if not verdicts:
        return None
    if all(verdict == "pass" for verdict in verdicts):
        return "pass"
    return "fail" if min(holm(failing)) < level else "inconclusive"
