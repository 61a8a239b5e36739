from __future__ import annotations

import numpy as np
import pytest

from qdeploy.bench.load.spec import OpenArrival
from qdeploy.bench.load.workload.arrivals import arrival_times


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


@pytest.mark.parametrize("burstiness", [0.25, 4.0])
def test_gamma_gaps_vary_as_their_shape_says(burstiness: float) -> None:
    gaps = np.diff(arrival_times("gamma", 5.0, 20_001, seed=3, burstiness=burstiness)) / 1e9
    assert abs(gaps.mean() - 0.2) < 1e-6
    assert gaps.var() / gaps.mean() ** 2 * burstiness == pytest.approx(1, abs=0.1)


def test_gamma_of_shape_one_is_poisson() -> None:
    assert np.array_equal(arrival_times("gamma", 5.0, 50, 1), arrival_times("poisson", 5.0, 50, 1))


@pytest.mark.parametrize("arrival", ["poisson", "constant"])
@pytest.mark.parametrize(("start", "end"), [(2.0, 8.0), (8.0, 2.0)])
def test_a_ramp_has_its_rates_at_its_ends_and_their_mean_overall(
    arrival: OpenArrival, start: float, end: float
) -> None:
    times = arrival_times(arrival, start, 40_001, seed=3, end_rate=end) / 1e9
    assert times[-1] == pytest.approx(40_000 / 5)
    edges = np.searchsorted(times, [0.05 * times[-1], 0.95 * times[-1]])
    first, last = edges[0] / (0.05 * times[-1]), (40_001 - edges[1]) / (0.05 * times[-1])
    assert (first, last) == (
        pytest.approx(start * 0.975 + end * 0.025, rel=0.06),
        pytest.approx(end * 0.975 + start * 0.025, rel=0.06),
    )
