from __future__ import annotations

import math

import numpy as np
import pytest

from qdeploy.bench import statistics as s
from qdeploy.bench.records import Estimate
from qdeploy.bench.statistics.quantiles import satterthwaite


def width(estimate: Estimate) -> float:
    assert estimate.low is not None and estimate.high is not None
    return estimate.high - estimate.low


def labels(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def paired(both: int, lost: int, gained: int, neither: int) -> tuple[s.Array, s.Array]:
    before = np.array([1.0] * (both + lost) + [0.0] * (gained + neither))
    after = np.array([1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither)
    return before, after


def test_the_degrees_of_freedom_of_one_variance_are_its_own() -> None:
    for df in range(1, 500):
        for variance in (1 / 3, 0.1, 7e-9):
            assert satterthwaite([variance], [df]) == df
    assert satterthwaite([2.0, 2.0], [5, 5]) == 10
    assert satterthwaite([0.0, 0.0], [5, 7]) == 12


@pytest.mark.parametrize(
    ("probability", "df", "expected"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 11, 2.2010), (0.95, 30, 1.6973), (0.95, 600, 1.6474)],
)
def test_student_quantiles_are_those_of_the_tables(probability: float, df: int, expected: float) -> None:
    assert s.student_quantile(probability, df) == pytest.approx(expected, abs=1e-4)


def test_wilson_known_answer() -> None:
    """Newcombe 1998 (single proportion), 81 of 263."""
    estimate = s.wilson(81, 263)
    assert (estimate.low, estimate.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@pytest.mark.parametrize("successes", [0, 10])
def test_wilson_stays_within_bounds(successes: int) -> None:
    estimate = s.wilson(successes, 10)
    assert estimate.low is not None and estimate.high is not None
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_newcombe_known_answer() -> None:
    """Newcombe 1998 (paired), table III: 36, 12, 2, 0 gives 0.0569 to 0.3404."""
    estimate = s.newcombe(both=36, lost=12, gained=2, neither=0)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((-0.2, -0.3404, -0.0569), abs=1e-4)


def test_newcombe_has_width_where_nothing_changed() -> None:
    estimate = s.newcombe(both=40, lost=0, gained=0, neither=10)
    assert estimate.value == 0
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low < 0 < estimate.high


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    [(60, 40, 0.0461), (0, 0, 1.0), (5, 5, 1.0), (9, 1, 0.01172), (0, 5, 0.03125)],
)
def test_mcnemar_known_answers(lost: int, gained: int, expected: float) -> None:
    assert s.mcnemar(lost, gained) == pytest.approx(expected, abs=1e-4)
    assert s.mcnemar(lost, gained) == s.mcnemar(gained, lost)


def test_mcnemar_of_many_changes_is_exact_arithmetic() -> None:
    assert 0 < s.mcnemar(10_000, 10_400) < 0.01


@pytest.mark.parametrize(
    ("churn", "difference", "items"),
    [(0.02, 0.005, 6277), (0.05, 0.01, 3922), (0.10, 0.01, 7847), (0.20, 0.03, 1742), (0.05, 0.02, 979)],
)
def test_sample_sizes_of_a_paired_difference(churn: float, difference: float, items: int) -> None:
    assert s.items_for_difference(churn, difference) == pytest.approx(items, abs=1)
    assert s.detectable_difference(churn, items) == pytest.approx(difference, rel=1e-3)


def test_nothing_is_detectable_in_few_changed_items() -> None:
    """Even if all of three changed items were lost, p would be above 5 %."""
    assert s.detectable_difference(0.03, 100) is None
    assert s.detectable_difference(0.0, 100) is None


@pytest.mark.parametrize(
    ("churn", "slack", "items"),
    [(0.05, 0.007, 6309), (0.10, 0.007, 12617), (0.05, 0.01, 3091), (0.1, 0.02, 1546)],
)
def test_sample_sizes_of_non_inferiority(churn: float, slack: float, items: int) -> None:
    assert s.items_for_verdict(churn, slack) == pytest.approx(items, abs=1)
    assert s.items_for_verdict(churn, slack, design=2.0) == pytest.approx(2 * items, abs=2)


def test_one_item_a_cluster_gives_the_textbook_error() -> None:
    values = np.random.default_rng(0).normal(size=50)
    error, df = s.clustered_error(values, labels(50))
    assert (error, df) == (pytest.approx(values.std(ddof=1) / math.sqrt(50)), 49)


def test_duplicated_items_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=30)
    error, df = s.clustered_error(values, labels(30))
    repeated = s.clustered_error(np.repeat(values, 4), [str(i // 4) for i in range(120)])
    assert repeated == (pytest.approx(error), df)
    assert s.design_effect(np.repeat(values, 4), [str(i // 4) for i in range(120)]) == pytest.approx(
        4, rel=0.1
    )


def test_graded_scores_have_the_t_interval_of_their_differences() -> None:
    rng = np.random.default_rng(4)
    before, after, clusters = rng.random(60), rng.random(60), [str(i // 4) for i in range(60)]
    found, exact = s.paired_difference(before, after, clusters), s.mean_interval(after - before, clusters)
    assert (found.low, found.high) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_a_suite_of_one_task_twice_is_the_task_with_the_certainty_of_one() -> None:
    """The same passages again add nothing; under other labels they would pass for new ones."""
    rng = np.random.default_rng(5)
    before, after = rng.random(200), rng.random(200)
    task = s.Pairs(before, after, labels(200))
    once, twice = s.suite_difference([task]), s.suite_difference([task, task])
    renamed = s.suite_difference([task, s.Pairs(before, after, [f"new{i}" for i in range(200)])])
    assert (twice.low, twice.high) == (pytest.approx(once.low, abs=1e-3), pytest.approx(once.high, abs=1e-3))
    assert width(renamed) == pytest.approx(width(once) / math.sqrt(2), rel=0.02)


def test_ratio_of_runs_known_answer() -> None:
    """Logs of 1, 2, 3 against 2, 3, 4: Welch's t has 4 degrees of freedom and error √(2/3)."""
    found = s.ratio_of_runs([math.exp(x) for x in (1, 2, 3)], [math.exp(x) for x in (2, 3, 4)])
    assert found is not None and found.low is not None
    assert math.log(found.value) == pytest.approx(1)
    assert math.log(found.low) == pytest.approx(1 - 2.7764 * math.sqrt(2 / 3), abs=1e-4)
    assert s.ratio_of_runs([1.0], [1.0, 2.0]) is None


def test_one_cluster_has_no_interval() -> None:
    assert s.mean_interval(np.ones(5), ["a"] * 5).low is None
    assert s.bootstrap_mean(np.ones(5), ["a"] * 5).low is None
    assert s.verdict(np.ones(5), np.ones(5), ["a"] * 5, 0.01) is None


def test_bootstrap_is_seeded_and_near_the_t_interval() -> None:
    values = np.random.default_rng(3).normal(1, 1, size=400)
    clusters = [str(i % 80) for i in range(400)]
    first, second = s.bootstrap_mean(values, clusters), s.bootstrap_mean(values, clusters)
    exact = s.mean_interval(values, clusters)
    assert first == second
    assert (first.low, first.high) == pytest.approx((exact.low, exact.high), abs=0.02)


def test_paired_interval_covers_the_true_difference() -> None:
    """95 % intervals of clustered data cover at least 93 % of the time, where unclustered ones would not."""
    rng = np.random.default_rng(0)
    clusters = [str(i // 10) for i in range(300)]
    covered = 0
    for _ in range(200):
        before = (rng.random(300) < 0.7).astype(float)
        lost = np.repeat(rng.random(30) < 0.1, 10)
        estimate = s.paired_difference(before, before * ~lost, clusters)
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= -0.07 <= estimate.high
    assert covered >= 186


def test_verdicts() -> None:
    same = paired(1600, 4, 4, 392)
    assert s.verdict(*same, labels(2000), 0.01) == "pass"
    assert s.verdict(*paired(1400, 200, 8, 392), labels(2000), 0.01) == "fail"
    assert s.verdict(*paired(150, 10, 10, 30), labels(200), 0.01) == "inconclusive"


def test_few_identical_answers_prove_nothing() -> None:
    assert s.verdict(*paired(40, 0, 0, 10), labels(50), 0.01) == "inconclusive"


def test_non_inferiority_errs_at_most_at_its_level() -> None:
    """A model exactly at the margin passes in about 5 % of experiments, not more."""
    rng = np.random.default_rng(1)
    passed = 0
    for _ in range(400):
        before = (rng.random(1000) < 0.8).astype(float)
        after = np.where(rng.random(1000) < 0.05, 0.0, before)
        passed += s.verdict(before, after, labels(1000), 0.05) == "pass"
    assert passed <= 32


def test_recovery_is_the_ratio_and_its_interval_holds_one_for_equal_models() -> None:
    before, after = paired(700, 30, 30, 240)
    estimate = s.recovery(before, after, labels(1000))
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    assert estimate.value == pytest.approx(1.0)
    assert estimate.low < 1 < estimate.high
    assert s.recovery(np.zeros(5), np.ones(5), labels(5)) is None
