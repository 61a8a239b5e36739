"""The ratio of two medians and the verdict over tasks."""

from __future__ import annotations

import pytest

from qdeploy.bench.records import Estimate, Percentile, Verdict
from qdeploy.bench.report.compare import overall, ratio, significant

from .conftest import task_score


def median(value: float | None, low: float | None = None, high: float | None = None) -> Percentile:
    return Percentile(q=0.5, value=value, low=low, high=high, needed=10)


def test_against_an_exact_baseline_the_interval_is_the_variants() -> None:
    found = ratio(median(6, 5, 8), median(2, 2, 2))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((3, 2.5, 4))


def test_swapping_the_two_inverts_the_ratio_and_its_interval() -> None:
    a, b = median(6, 5, 8), median(4, 3, 5)
    there, back = ratio(a, b), ratio(b, a)
    assert there is not None and back is not None and there.low and there.high
    assert (back.value, back.low, back.high) == pytest.approx(
        (1 / there.value, 1 / there.high, 1 / there.low)
    )


def test_two_uncertain_medians_are_less_certain_than_one() -> None:
    one, two = ratio(median(6, 5, 8), median(4, 4, 4)), ratio(median(6, 5, 8), median(4, 3, 5))
    assert one is not None and two is not None and one.low and one.high and two.low and two.high
    assert two.low < one.low < one.high < two.high


@pytest.mark.parametrize("other", [None, median(None), median(3), median(3, 0, 4)])
def test_no_ratio_without_both_intervals(other: Percentile | None) -> None:
    assert ratio(median(3, 2, 4), other) is None


def test_significant_leaves_out_no_difference() -> None:
    assert significant(Estimate(value=0.8, low=0.7, high=0.9), 1.0)
    assert not significant(Estimate(value=0.8, low=0.7, high=1.0), 1.0)
    assert not significant(Estimate(value=0.1), 1.0)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail", "pass"], "fail"),
        ([None, "pass"], "pass"),
        ([None], None),
    ],
)
def test_the_worst_verdict_decides(verdicts: list[Verdict | None], expected: Verdict | None) -> None:
    tasks = [task_score(True).model_copy(update={"verdict": verdict}) for verdict in verdicts]
    assert overall(tasks) == expected
