from __future__ import annotations

import numpy as np

from qdeploy.bench.load.arrivals import arrival_times


def test_poisson_gaps_have_the_mean_and_variance_of_an_exponential() -> None:
    times = arrival_times("poisson", 5.0, 20_001, seed=3)
    gaps = np.diff(times) / 1e9
    assert times[0] == 0
    assert np.all(gaps >= 0)
    assert abs(gaps.mean() - 0.2) < 1e-9 * 20_000
    assert abs(gaps.var() / 0.04 - 1) < 0.06
    assert abs(np.mean(gaps > 0.2) - np.exp(-1)) < 0.015
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03


def test_the_seed_fixes_the_schedule() -> None:
    first, again, other = (arrival_times("poisson", 5.0, 50, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_constant_gaps() -> None:
    assert arrival_times("constant", 4.0, 4, seed=0).tolist() == [0, 250_000_000, 500_000_000, 750_000_000]
