"""One choice for each unit, so that the sum of one cost is least and the sum of another within a limit.

This is the multiple-choice knapsack problem. Units are taken one after the other; of all ways to choose for
those taken so far only the ones remain that no other beats in both costs (Nemhauser and Ullmann, Management
Science 15, 1969). Of these a way is dropped, too, where even mixtures of the choices to come, the linear
relaxation of the rest, could not bring it below the best way that is known. That bound is so near that few
ways remain, and the result is exact but for GAP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GAP = 1e-4
"""The result's sum is at most this share above the least one."""


@dataclass(frozen=True)
class Option:
    """What a choice for a unit costs.

    Attributes:
        cost: what is to be least in sum.
        weight: what must stay within the limit in sum.
    """

    cost: float
    weight: float


def solve(units: Sequence[Sequence[Option]], limit: float) -> list[int] | None:
    """The position of the option that each unit gets; None where even the lightest exceed the limit."""
    if sum(min(option.weight for option in options) for options in units) > limit:
        return None
    rests = _rests(units)
    best = _rounded_down(units, limit)
    costs, weights = np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.intp], int]] = []
    for i, options in enumerate(units):
        added = np.array([(option.cost, option.weight) for option in options])
        costs = (costs[:, None] + added[:, 0]).ravel()
        weights = (weights[:, None] + added[:, 1]).ravel()
        bound = costs + rests[i + 1].least(limit - weights)
        kept = _undominated(costs, weights, np.flatnonzero(bound < best[0] * (1 - GAP)))
        if not len(kept):
            return best[1]
        steps.append((kept, len(options)))
        costs, weights = costs[kept], weights[kept]
    return _traced(steps, int(costs.argmin()))


def _undominated(costs: Floats, weights: Floats, among: NDArray[np.intp]) -> NDArray[np.intp]:
    """Those that no other beats or equals in both."""
    order = among[np.lexsort((costs[among], weights[among]))]
    lowest = np.minimum.accumulate(costs[order])
    return order[np.concatenate([[True], lowest[1:] < lowest[:-1]])] if len(order) else order


def _traced(steps: Sequence[tuple[NDArray[np.intp], int]], position: int) -> list[int]:
    """The options on the way to a position after the last step."""
    chosen = []
    for kept, count in reversed(steps):
        position, option = divmod(int(kept[position]), count)
        chosen.append(option)
    return chosen[::-1]


@dataclass(frozen=True)
class _Step:
    """From one corner of a unit's lower convex hull to the next, heavier one."""

    unit: int
    option: int
    cost: float
    weight: float

    @property
    def slope(self) -> float:
        """Cost won for each weight; negative."""
        return self.cost / self.weight


def _hull(unit: int, options: Sequence[Option]) -> tuple[int, list[_Step]]:
    """The lightest option of a unit, and the steps from it along the convex hull to the one of least cost."""
    at = min(range(len(options)), key=lambda i: (options[i].weight, options[i].cost))
    start, steps = at, list[_Step]()
    while True:
        ahead = [
            _Step(unit, i, option.cost - options[at].cost, option.weight - options[at].weight)
            for i, option in enumerate(options)
            if option.cost < options[at].cost
        ]
        if not ahead:
            return start, steps
        steps.append(min(ahead, key=lambda step: (step.slope, -step.weight)))
        at = steps[-1].option


class _Rest:
    """The least cost of some units under a limit, where options may be mixed: convex in the limit."""

    def __init__(self, base: Option, steps: Sequence[_Step]) -> None:
        self._weights = base.weight + np.cumsum([0.0, *(step.weight for step in steps)])
        self._costs = base.cost + np.cumsum([0.0, *(step.cost for step in steps)])

    def least(self, limits: Floats) -> Floats:
        """For each limit; infinite where nothing is light enough."""
        found = np.interp(limits, self._weights, self._costs)
        # Sums in another order may differ in the last digits.
        return np.where(limits < self._weights[0] * (1 - 1e-12), np.inf, found)


def _rests(units: Sequence[Sequence[Option]]) -> list[_Rest]:
    """For every i, the units from i on."""
    base, steps = Option(0.0, 0.0), list[_Step]()
    rests = [_Rest(base, steps)]
    for i in reversed(range(len(units))):
        start, own = _hull(i, units[i])
        first = units[i][start]
        base = Option(base.cost + first.cost, base.weight + first.weight)
        steps = sorted([*steps, *own], key=lambda step: step.slope)
        rests.append(_Rest(base, steps))
    return rests[::-1]


def _rounded_down(units: Sequence[Sequence[Option]], limit: float) -> tuple[float, list[int]]:
    """A way within the limit along the relaxation: its cost and options.

    Steps that no longer fit are left out, and those after them on the same unit.
    """
    hulls = [_hull(i, options) for i, options in enumerate(units)]
    chosen, closed = [start for start, _ in hulls], set[int]()
    weight = sum(options[i].weight for options, i in zip(units, chosen, strict=True))
    for step in sorted((step for _, steps in hulls for step in steps), key=lambda step: step.slope):
        if step.unit not in closed and weight + step.weight <= limit:
            weight += step.weight
            chosen[step.unit] = step.option
        else:
            closed.add(step.unit)
    return sum(options[i].cost for options, i in zip(units, chosen, strict=True)), chosen
