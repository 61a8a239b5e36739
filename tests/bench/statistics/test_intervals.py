"""Intervals cover the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qdeploy.bench import statistics as s
from qdeploy.bench.load.figures.percentiles import distribution
from qdeploy.bench.records import Estimate
from qdeploy.bench.report.compare import percentile, ratio

from .simulation import agrees, answers, at_least, clustered_normal, labels


def covers(estimate: Estimate | None, truth: float) -> bool:
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    return estimate.low <= truth <= estimate.high


@pytest.mark.parametrize("n", [20, 100, 400])
def test_wilson_covers_95_percent_on_average(n: int) -> None:
    """Summed exactly over the binomial distribution; single proportions are off by its steps."""
    intervals = [s.wilson(k, n) for k in range(n + 1)]
    truths = np.linspace(0.02, 0.98, 97)
    coverage = [
        sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if covers(intervals[k], p))
        for p in truths
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.006)


def test_intervals_over_clusters_cover_and_others_would_not() -> None:
    rng, runs, clusters = np.random.default_rng(0), 2000, labels(100, 5)
    draws = [clustered_normal(rng, 20, 5) for _ in range(runs)]
    assert agrees(sum(covers(s.mean_interval(x, clusters), 1) for x in draws), runs, 0.95)
    assert sum(covers(s.mean_interval(x, labels(100)), 1) for x in draws) < 0.8 * runs


@pytest.mark.parametrize(("n", "lost", "gained"), [(40, 0.05, 0.02), (200, 0.06, 0.04), (1000, 0.01, 0.0)])
def test_newcombe_covers_at_least_95_percent(n: int, lost: float, gained: float) -> None:
    rng, runs = np.random.default_rng(1), 4000
    counts = rng.multinomial(n, [0.7 - lost, lost, gained, 0.3 - gained], size=runs).tolist()
    hits = sum(covers(s.newcombe(*four), gained - lost) for four in counts)
    assert at_least(hits, runs, 0.95)


@pytest.mark.parametrize("size", [1, 4])
def test_difference_and_recovery_cover_at_least_95_percent(size: int) -> None:
    rng, runs = np.random.default_rng(2), 1500
    draws = [answers(rng, 400, 0.7, 0.08, 0.04, size) for _ in range(runs)]
    differences = [s.suite_difference([pairs]) for pairs in draws]
    assert at_least(sum(covers(found, -0.04) for found in differences), runs, 0.95)
    recoveries = [s.suite_recovery([pairs]) for pairs in draws]
    assert at_least(sum(covers(found, 0.66 / 0.7) for found in recoveries), runs, 0.95)


def test_fieller_covers_95_percent_of_graded_scores() -> None:
    """Scores that are not 0 and 1 have no Newcombe interval beside it, so the level is met, not exceeded."""
    rng, runs, clusters = np.random.default_rng(3), 2000, labels(120, 4)
    hits = 0
    for _ in range(runs):
        before = clustered_normal(rng, 30, 4) + 2
        after = 0.9 * before + 0.5 * clustered_normal(rng, 30, 4) - 0.5
        hits += covers(s.recovery(before, after, clusters), 0.9)
    assert agrees(hits, runs, 0.95)


@pytest.mark.parametrize("size", [1, 5])
def test_share_of_flips_covers_at_least_95_percent(size: int) -> None:
    rng, runs = np.random.default_rng(4), 1500
    clusters = labels(300, size)
    flipped = [np.repeat(rng.random(300 // size) < 0.1, size) for _ in range(runs)]
    assert at_least(sum(covers(s.share(marks, clusters), 0.1) for marks in flipped), runs, 0.94)


def test_bootstrap_covers_where_values_are_skewed() -> None:
    """Divergences are: log-normal windows, exponential within. Exactness there is not to be had, 0.93 is."""
    rng, runs, clusters = np.random.default_rng(5), 300, labels(256, 8)
    hits = 0
    for _ in range(runs):
        windows = np.exp(rng.normal(0, 0.5, 32))
        values = np.repeat(windows, 8) * rng.exponential(1, 256)
        hits += covers(s.bootstrap_mean(values, clusters), math.exp(0.125))
    assert at_least(hits, runs, 0.94)


def test_bootstrap_reaches_further_where_the_long_tail_is() -> None:
    values = np.random.default_rng(8).exponential(1, 60)
    found, plain = (make(values, labels(60)) for make in (s.bootstrap_mean, s.mean_interval))
    assert found.low is not None and found.high is not None and plain.high is not None
    assert found.high - found.value > 1.2 * (found.value - found.low)
    assert found.high > plain.high


@pytest.mark.parametrize("shared", [False, True])
def test_suites_cover_with_tasks_of_unequal_sizes_and_shared_passages(shared: bool) -> None:
    """Two tasks on the same passages err together; only labels that say so give enough width."""
    rng, runs = np.random.default_rng(6), 1500
    hits = 0
    for _ in range(runs):
        big, small = answers(rng, 400, 0.7, 0.08, 0.04, 4), answers(rng, 100, 0.7, 0.08, 0.04)
        if shared:
            small = s.Pairs(big.baseline[::4], big.variant[::4], big.clusters[::4])
        else:
            small = s.Pairs(small.baseline, small.variant, [f"small/{label}" for label in small.clusters])
        hits += covers(s.suite_difference([big, small]), -0.04)
    assert at_least(hits, runs, 0.95)


def test_graded_suites_cover_95_percent() -> None:
    rng, runs = np.random.default_rng(7), 2000
    sizes, hits = {"a": 10, "b": 40}, 0
    for _ in range(runs):
        tasks = []
        for name, count in sizes.items():
            noise = clustered_normal(rng, count, 3) * (3 if name == "a" else 1)
            zeros = np.zeros(3 * count) + 5
            tasks.append(s.Pairs(zeros, zeros + noise, [f"{name}{label}" for label in labels(3 * count, 3)]))
        hits += covers(s.suite_difference(tasks), 2.0)
    assert agrees(hits, runs, 0.95)


def test_ratios_of_runs_cover_95_percent() -> None:
    """Five runs each whose medians differ from run to run, more so for the variant."""
    rng, runs = np.random.default_rng(8), 4000
    before = np.exp(rng.normal(3.0, 0.02, size=(runs, 5)))
    after = np.exp(rng.normal(3.0 + math.log(0.8), 0.06, size=(runs, 5)))
    hits = sum(
        covers(s.ratio_of_runs(b, a), 0.8) for b, a in zip(before.tolist(), after.tolist(), strict=True)
    )
    assert at_least(hits, runs, 0.95)
    assert hits / runs < 0.975


def test_ratios_of_medians_cover_at_least_95_percent() -> None:
    rng, runs = np.random.default_rng(9), 1000
    hits = 0
    for _ in range(runs):
        found = [distribution(rng.exponential(scale, 150).tolist()) for scale in (2.0, 1.0)]
        hits += covers(ratio(percentile(found[1], 0.5), percentile(found[0], 0.5)), 0.5)
    assert at_least(hits, runs, 0.95)
