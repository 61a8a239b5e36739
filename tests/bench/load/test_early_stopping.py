from __future__ import annotations

import numpy as np
import pytest

from qdeploy.bench.load.figures.early_stopping import (
    CONFIDENCE,
    binomial_cdf,
    tolerated,
    upper_bound,
    verdict,
)


def test_binomial_distribution() -> None:
    assert np.allclose(binomial_cdf(3, 0.5), [1 / 8, 4 / 8, 7 / 8, 1])
    assert binomial_cdf(20_000, 0.01)[-1] == pytest.approx(1)


@pytest.mark.parametrize(("q", "samples"), [(0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_one_request_over_the_limit_is_tolerated_from_the_sample_sizes_of_mlperf_on(
    q: float, samples: int
) -> None:
    assert tolerated(samples - 1, q) == 0
    assert tolerated(samples, q) == 1


@pytest.mark.parametrize(("q", "samples"), [(0.9, 44), (0.99, 459)])
def test_least_sample(q: float, samples: int) -> None:
    assert tolerated(samples - 1, q) == -1
    assert tolerated(samples, q) == 0
    assert upper_bound(np.arange(samples - 1.0), q) is None
    assert upper_bound(np.arange(float(samples)), q) == samples - 1


def test_the_bound_holds_with_the_confidence_that_it_claims() -> None:
    rng, truth, trials = np.random.default_rng(0), np.log(10), 20_000
    samples = np.sort(rng.exponential(size=(trials, 200)), axis=1)
    covered = np.mean([(upper_bound(sample, 0.9) or 0) >= truth for sample in samples])
    assert covered >= CONFIDENCE - 3 * np.sqrt(0.01 * 0.99 / trials)
    assert covered <= 0.996, "the exact bound wastes little"


def test_wrong_verdicts_are_rare() -> None:
    """The true share over the limit is just what the percentile allows: each side errs in 1 % at most."""
    rng, n, trials = np.random.default_rng(1), 500, 20_000
    found = [verdict(int(over), n, 0.95) for over in rng.binomial(n, 0.05, size=trials)]
    for wrong in ("pass", "fail"):
        assert 0.004 < found.count(wrong) / trials < 0.0125


def test_verdicts_at_the_edges() -> None:
    assert verdict(0, 459, 0.99) == "pass"
    assert verdict(0, 458, 0.99) == "inconclusive"
    assert verdict(10, 10, 0.99) == "fail"
    assert verdict(1, 10, 0.5) == "inconclusive"
