from __future__ import annotations

import numpy as np
import pytest

from qdeploy.bench.load.figures.percentiles import distribution, order_ranks, samples_needed


def test_sample_floor() -> None:
    assert [samples_needed(q) for q in (0.5, 0.9, 0.95, 0.99)] == [5, 29, 59, 299]


@pytest.mark.parametrize(
    ("n", "q", "ranks"),
    [
        (100, 0.5, (40, 61)),  # Conover, Practical Nonparametric Statistics: 95 % interval of the median
        (10, 0.5, (2, 9)),
        (299, 0.99, (292, 300)),  # no upper bound at the floor itself
        (5, 0.5, (0, 6)),
    ],
)
def test_order_statistic_ranks(n: int, q: float, ranks: tuple[int, int]) -> None:
    assert order_ranks(n, q) == ranks


def test_interval_covers_the_true_percentile_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        p90 = distribution(rng.exponential(size=200)).percentiles[1]
        assert p90.low is not None
        assert p90.high is not None
        hits += p90.low <= -np.log(0.1) <= p90.high
    assert hits / 400 > 0.92


def test_percentile_below_its_floor_is_refused() -> None:
    values = np.arange(1.0, 299.0)
    p50, p90, p95, p99 = distribution(values).percentiles
    assert (p50.value, p90.value) == (np.quantile(values, 0.5), np.quantile(values, 0.9))
    assert p95.value is not None
    assert (p99.value, p99.low, p99.high, p99.needed) == (None, None, None, 299)
    assert distribution([*values, 299.0]).percentiles[3].value is not None


def test_dependent_values_get_no_interval_and_none_at_all_no_mean() -> None:
    assert distribution(np.ones(300), independent=False).percentiles[3].low is None
    assert distribution([]).mean is None
