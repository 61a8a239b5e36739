"""Looking more than once does not make a verdict err more often."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from qdeploy.bench import statistics as s
from qdeploy.bench.statistics.sequential import nominal_levels, repeated_p, spent

from .simulation import agrees, answers, at_most

EIGHT = tuple(k / 8 for k in range(1, 9))
UNEVEN = (0.11, 0.3, 0.32, 0.7, 0.96)


def walks(rng: np.random.Generator, runs: int, shares: tuple[float, ...], drift: float = 0.0) -> s.Array:
    """z statistics at each look, [runs, looks]."""
    times = np.array((0.0, *shares))
    steps = rng.normal(size=(runs, len(shares))) * np.sqrt(np.diff(times))
    return (steps.cumsum(1) + drift * times[1:]) / np.sqrt(times[1:])


def bounds(shares: tuple[float, ...], level: float = s.LEVEL) -> s.Array:
    return np.array([-s.normal_quantile(p) for p in nominal_levels(shares, level)])


def test_known_bounds() -> None:
    """Five looks, one-sided 2.5 %: Lan-DeMets as in Jennison & Turnbull and in ldbounds."""
    found = bounds((0.2, 0.4, 0.6, 0.8, 1.0), 0.025)
    assert found == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=1e-3)


def test_one_look_at_all_is_the_plain_test() -> None:
    assert nominal_levels((1.0,)) == (pytest.approx(0.05, rel=1e-4),)
    assert repeated_p(0.03, (1.0,)) == 0.03


@pytest.mark.parametrize("shares", [EIGHT, UNEVEN])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_the_level_holds_under_peeking_and_would_not_without(shares: tuple[float, ...], level: float) -> None:
    rng, runs = np.random.default_rng(0), 100_000
    z = walks(rng, runs, shares)
    assert agrees(int((z > bounds(shares, level)).any(1).sum()), runs, spent(shares[-1], level))
    assert (z > -s.normal_quantile(level)).any(1).mean() > 2 * level


def test_peeking_costs_little_power_and_saves_items() -> None:
    """A drift that one look finds in 80 %: with eight looks it is found nearly as often, and sooner."""
    rng, runs = np.random.default_rng(1), 50_000
    drift = -s.normal_quantile(0.05) + s.normal_quantile(0.80)
    crossed = walks(rng, runs, EIGHT, drift) > bounds(EIGHT)
    found = crossed.any(1)
    assert 0.77 < found.mean() < 0.80
    seen = np.where(found, (crossed.argmax(1) + 1) / 8, 1.0)
    assert seen.mean() < 0.85


def test_repeated_p_is_below_a_level_exactly_beyond_its_bound() -> None:
    shares = EIGHT[:5]
    for level in (0.002, 0.05, 0.2):
        nominal = nominal_levels(shares, level)[-1]
        assert repeated_p(nominal, shares) == pytest.approx(level, rel=1e-3)


def test_verdicts_at_every_look_err_in_at_most_5_percent() -> None:
    """The whole procedure on answers of a model that is exactly at the margin, in clusters of two."""
    rng, runs, looks = np.random.default_rng(2), 400, (0.25, 0.5, 0.75, 1.0)
    levels, margin, ends = nominal_levels(looks), 0.05, []
    for _ in range(runs):
        pairs = answers(rng, 800, 0.8, 0.06, 0.02, size=2)
        ends.append("inconclusive")
        for share, level in zip(looks, levels, strict=True):
            n = int(800 * share)
            found = s.verdict(pairs.baseline[:n], pairs.variant[:n], pairs.clusters[:n], margin, level)
            if found != "inconclusive":
                ends[-1] = str(found)
                break
    assert at_most(ends.count("pass"), runs, 0.05)
    assert at_most(ends.count("fail"), runs, 0.05)


def test_levels_rise_from_look_to_look() -> None:
    assert all(a < b for a, b in pairwise(nominal_levels(EIGHT)))
