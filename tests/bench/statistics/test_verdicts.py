"""Verdicts and p-values err as rarely as they say, and decide as often as the power formulas promise."""

from __future__ import annotations

import numpy as np
import pytest

from qdeploy.bench import statistics as s

from .simulation import agrees, answers, at_least, at_most, labels

ACCURACY, MARGIN = 0.8, 0.05


@pytest.mark.parametrize(("n", "size"), [(60, 1), (1000, 1), (600, 4)])
def test_a_model_at_the_margin_passes_and_fails_in_at_most_5_percent(n: int, size: int) -> None:
    rng, runs = np.random.default_rng(0), 1500
    draws = [answers(rng, n, ACCURACY, 0.06, 0.02, size) for _ in range(runs)]
    found = [s.verdict(p.baseline, p.variant, p.clusters, MARGIN) for p in draws]
    assert at_most(found.count("pass"), runs, 0.05)
    assert at_most(found.count("fail"), runs, 0.05)


@pytest.mark.parametrize(("margin", "churn"), [(0.05, 0.1), (0.01, 0.02)])
def test_verdicts_use_the_level_that_they_have(margin: float, churn: float) -> None:
    """Not only no more than 5 %: a test that never decides would be that as well."""
    rng, runs, slack = np.random.default_rng(1), 1500, margin * ACCURACY
    draws = [answers(rng, 4000, ACCURACY, (churn + slack) / 2, (churn - slack) / 2) for _ in range(runs)]
    found = [s.verdict(p.baseline, p.variant, p.clusters, margin) for p in draws]
    assert min(found.count("pass"), found.count("fail")) > 0.025 * runs


@pytest.mark.parametrize(("margin", "churn", "size"), [(0.05, 0.1, 1), (0.025, 0.04, 1), (0.05, 0.1, 3)])
def test_the_planned_number_of_items_decides_four_times_in_five(
    margin: float, churn: float, size: int
) -> None:
    rng, runs = np.random.default_rng(2), 800
    n = s.items_for_verdict(churn, margin * ACCURACY, design=size)
    n -= n % size
    draws = [answers(rng, n, ACCURACY, churn / 2, churn / 2, size) for _ in range(runs)]
    passed = sum(s.verdict(p.baseline, p.variant, p.clusters, margin) == "pass" for p in draws)
    assert agrees(passed, runs, 0.80)


def test_verdict_bounds_and_p_say_the_same() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        pairs = answers(rng, 240, ACCURACY, rng.uniform(0, 0.15), rng.uniform(0, 0.1), 2)
        found = s.verdict(pairs.baseline, pairs.variant, pairs.clusters, MARGIN)
        assert found == s.judge(s.recovery_bounds([pairs]), MARGIN)
        assert (found == "fail") == (s.inferiority_p([pairs], MARGIN) < s.LEVEL)


@pytest.mark.parametrize("churn", [0.03, 0.1, 0.3])
def test_mcnemar_errs_in_at_most_5_percent(churn: float) -> None:
    rng, runs = np.random.default_rng(4), 8000
    changed = rng.binomial(300, churn, size=runs)
    lost = rng.binomial(changed, 0.5)
    rejected = sum(s.mcnemar(int(b), int(m - b)) <= 0.05 for b, m in zip(lost, changed, strict=True))
    assert at_most(rejected, runs, 0.05)
    assert rejected / runs > 0.03


@pytest.mark.parametrize(("churn", "difference"), [(0.1, 0.03), (0.05, 0.02), (0.3, 0.05)])
def test_mcnemar_has_the_power_of_the_sample_size(churn: float, difference: float) -> None:
    rng, runs = np.random.default_rng(5), 4000
    n = s.items_for_difference(churn, difference)
    counts = rng.multinomial(
        n, [(churn + difference) / 2, (churn - difference) / 2, 1 - churn], size=runs
    ).tolist()
    rejected = sum(s.mcnemar(lost, gained) <= 0.05 for lost, gained, _ in counts)
    assert agrees(rejected, runs, 0.80)


def test_the_detectable_difference_is_detected_four_times_in_five() -> None:
    rng, runs, churn, n = np.random.default_rng(6), 4000, 0.08, 1500
    difference = s.detectable_difference(churn, n)
    assert difference is not None
    shares = [(churn + difference) / 2, (churn - difference) / 2, 1 - churn]
    counts = rng.multinomial(n, shares, size=runs).tolist()
    assert agrees(sum(s.mcnemar(lost, gained) <= 0.05 for lost, gained, _ in counts), runs, 0.80)


def test_p_of_a_difference_knows_clusters() -> None:
    rng, runs = np.random.default_rng(7), 1000
    draws = [answers(rng, 400, 0.7, 0.1, 0.1, 5) for _ in range(runs)]
    assert at_most(sum(s.difference_p(pairs) <= 0.05 for pairs in draws), runs, 0.05)
    naive = [s.mcnemar(*s.changes(pairs.baseline, pairs.variant)) for pairs in draws]
    assert sum(p <= 0.05 for p in naive) > 0.25 * runs


@pytest.mark.parametrize("tasks", [2, 26])
def test_holm_errs_at_all_in_at_most_5_percent_and_uses_it(tasks: int) -> None:
    rng, runs = np.random.default_rng(8), 4000
    errors = sum(min(s.holm(p)) <= 0.05 for p in rng.random((runs, tasks)).tolist())
    assert agrees(errors, runs, 1 - (1 - 0.05 / tasks) ** tasks)


def test_holm_with_true_differences_among_them() -> None:
    """Half of the tasks differ plainly; a wrong claim about the others stays below 5 %."""
    rng, runs = np.random.default_rng(9), 4000
    p_values = rng.random((runs, 10))
    p_values[:, :5] *= 1e-4
    errors = sum(min(s.holm(p)[5:]) <= 0.05 for p in p_values.tolist())
    assert agrees(errors, runs, 1 - 0.99**5)


def test_holm_known_answer() -> None:
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([]) == []


def test_suites_fail_wrongly_in_at_most_5_percent_where_single_tasks_would_not() -> None:
    rng, runs = np.random.default_rng(10), 300
    found, naive = [], 0
    for _ in range(runs):
        tasks = [answers(rng, 400, ACCURACY, 0.06, 0.02) for _ in range(10)]
        verdicts = [s.judge(s.recovery_bounds([pairs]), MARGIN) for pairs in tasks]
        naive += "fail" in verdicts
        found.append(s.overall(verdicts, [s.inferiority_p([pairs], MARGIN) for pairs in tasks]))
    assert at_most(found.count("fail"), runs, 0.05)
    assert at_most(found.count("pass"), runs, 0.05)
    assert naive > 0.2 * runs


def test_a_pooled_suite_at_the_margin_passes_in_5_percent() -> None:
    rng, runs = np.random.default_rng(11), 1500
    verdicts = []
    for _ in range(runs):
        pairs = answers(rng, 1200, ACCURACY, 0.06, 0.02), answers(rng, 400, ACCURACY, 0.06, 0.02)
        tasks = [
            s.Pairs(p.baseline, p.variant, [f"{i}/{c}" for c in p.clusters]) for i, p in enumerate(pairs)
        ]
        verdicts.append(s.judge(s.recovery_bounds(tasks), MARGIN))
    assert at_most(verdicts.count("pass"), runs, 0.05)
    assert at_least(verdicts.count("pass"), runs, 0.03)


def test_few_identical_answers_prove_nothing_and_recovery_says_so() -> None:
    same = np.array([1.0] * 40 + [0.0] * 10)
    bounds = s.recovery_bounds([s.Pairs(same, same, labels(50))])
    assert bounds is not None and bounds.low is not None
    assert bounds.value == 1
    assert bounds.low < 0.99


def test_a_baseline_near_zero_decides_nothing() -> None:
    before = np.array([1.0] + [0.0] * 49)
    pairs = s.Pairs(before, np.zeros(50), labels(50))
    assert s.judge(s.recovery_bounds([pairs]), 0.01) == "inconclusive"
    assert s.judge(None, 0.01) == "inconclusive"


def test_overall_needs_all_to_pass_and_one_to_fail_for_sure() -> None:
    assert s.overall([], []) is None
    assert s.overall(["pass", "pass"], [1.0, 0.9]) == "pass"
    assert s.overall(["pass", "inconclusive"], [1.0, 0.3]) == "inconclusive"
    assert s.overall(["pass", "fail"], [1.0, 0.04]) == "inconclusive"
    assert s.overall(["pass", "fail"], [1.0, 0.02]) == "fail"


def test_a_suite_passes_by_its_mean_unless_a_task_fails_for_sure() -> None:
    assert s.overall(["inconclusive"] * 2, [1.0, 1.0, 1.0], "pass") == "pass"
    assert s.overall(["pass", "fail"], [1.0, 0.01, 1.0], "pass") == "fail"
    assert s.overall(["inconclusive"] * 2, [1.0, 1.0, 0.01], "fail") == "fail"
    assert s.overall(["pass", "pass"], [1.0, 1.0, 1.0], "inconclusive") == "inconclusive"
