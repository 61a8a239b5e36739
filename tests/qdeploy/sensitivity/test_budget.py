from __future__ import annotations

import itertools
import random

import pytest

from qdeploy.sensitivity.budget import GAP, Option, solve

Units = list[list[Option]]


def sums(units: Units, way: tuple[int, ...] | list[int]) -> tuple[float, float]:
    chosen = [options[i] for options, i in zip(units, way, strict=True)]
    return sum(option.cost for option in chosen), sum(option.weight for option in chosen)


def by_trying_all(units: Units, limit: float) -> float | None:
    ways = itertools.product(*(range(len(options)) for options in units))
    found = [cost for cost, weight in (sums(units, way) for way in ways) if weight <= limit]
    return min(found, default=None)


def random_units(rng: random.Random, count: int) -> Units:
    """Costs with ties and zeros, and options that others beat in both."""

    def option() -> Option:
        return Option(rng.choice([rng.random(), float(rng.randint(0, 3))]), rng.randint(0, 9))

    return [[option() for _ in range(rng.randint(1, 4))] for _ in range(count)]


@pytest.mark.parametrize("seed", range(60))
def test_no_way_is_better(seed: int) -> None:
    rng = random.Random(seed)
    units = random_units(rng, rng.randint(1, 6))
    limit = rng.uniform(0, 5 * len(units))
    best, found = by_trying_all(units, limit), solve(units, limit)
    if best is None:
        assert found is None
        return
    assert found is not None
    cost, weight = sums(units, found)
    assert weight <= limit
    assert cost <= best * (1 + 2 * GAP)


def test_the_limit_may_be_met_exactly() -> None:
    units = [[Option(0.0, 3), Option(1.0, 1)], [Option(0.0, 5), Option(2.0, 2)]]
    assert solve(units, 8) == [0, 0]
    assert solve(units, 7) == [1, 0]
    assert solve(units, 3) == [1, 1]
    assert solve(units, 2) is None


def test_more_room_never_does_harm() -> None:
    rng = random.Random(7)
    units = [
        [Option(rng.lognormvariate(0, 1) / 4**bits, bits * rng.choice([1, 3, 8])) for bits in (2, 3, 4, 8)]
        for _ in range(120)
    ]
    least = sum(min(option.weight for option in options) for options in units)
    found = [solve(units, least * factor) for factor in (1.0, 1.1, 1.3, 1.7, 2.5)]
    costs = [sums(units, way)[0] for way in found if way is not None]
    assert len(costs) == len(found)
    assert all(later <= earlier * (1 + GAP) for earlier, later in itertools.pairwise(costs))


def test_without_units_nothing_is_chosen() -> None:
    assert solve([], 0) == []
