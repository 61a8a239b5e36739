from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from qdeploy.bench.accuracy.totals import GROUPS, jackknife
from qdeploy.bench.statistics import Array


def test_of_a_mean_the_jackknife_s_error_is_the_classical_one() -> None:
    """With one cluster a group, its variance is that of the mean, sd²/n, exactly."""
    values = np.random.default_rng(0).normal(size=GROUPS)
    found = jackknife(lambda kept: float(values[list(kept)].mean()), [str(i) for i in range(GROUPS)])
    assert found.value == pytest.approx(values.mean())
    assert found.low is not None and found.high is not None
    error = values.std(ddof=1) / GROUPS**0.5
    assert (found.high - found.low) / 2 == pytest.approx(2.093 * error, rel=1e-3)


def test_intervals_of_a_ratio_of_clustered_sums_cover_it() -> None:
    """exp(−Σll / Σwords) over documents, as of perplexity: near 95 % of intervals hold the truth."""
    random = np.random.default_rng(1)
    covered, runs = 0, 300
    for _ in range(runs):
        words = random.integers(20, 60, 100)
        loss = words * (1.0 + np.repeat(random.normal(0, 0.2, 50), 2))
        clusters = [f"{i // 2:03d}" for i in range(100)]
        found = jackknife(partial(_perplexity, loss, words), clusters)
        covered += found.low is not None and found.high is not None and found.low < np.e < found.high
    assert covered / runs == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / runs) ** 0.5)


def _perplexity(loss: Array, words: Array, kept: Sequence[int]) -> float:
    return float(np.exp(loss[list(kept)].sum() / words[list(kept)].sum()))


def test_one_cluster_has_no_interval() -> None:
    found = jackknife(lambda kept: float(len(kept)), ["a", "a", "a"])
    assert (found.value, found.low, found.high) == (3.0, None, None)
