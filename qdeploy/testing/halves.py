"""A layer whose rows two processes share; here they are threads."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, BrokenBarrierError

from qdeploy.distributed import Group
from qdeploy.methods.base import LinearProblem, Solution, solve

Told = tuple[float, ...] | None
"""What a process hands over, None once it is finished."""


class _Half(Group):
    """One of the two."""

    world = 2

    def __init__(self, rank: int, barrier: Barrier, told: list[Told]) -> None:
        self.rank, self._barrier, self._told = rank, barrier, told

    def totals(self, *values: float) -> tuple[float, ...]:
        """As in `Group`."""
        return tuple(map(sum, zip(*self._meet(values), strict=True)))

    def solve(self, config: object, whole: LinearProblem) -> Solution:
        """Solve this process's part of the rows."""
        rows, hessian = self.part(len(whole.weight)), copy.deepcopy(whole.hessian)
        try:
            found = solve(config, replace(whole, weight=whole.weight[rows], hessian=hessian, group=self))
            self._meet(None)
        except BaseException:
            self._barrier.abort()
            raise
        return found

    def _meet(self, told: Told) -> list[tuple[float, ...]]:
        self._told[self.rank] = told
        self._barrier.wait()
        first, second = self._told
        self._barrier.wait()
        if first is None and second is None:
            return []
        assert first is not None and second is not None and len(first) == len(second), (
            f"two processes call group.totals unequally often: one with {first}, the other with {second}"
        )
        return [first, second]


def solve_halves(config: object, whole: LinearProblem) -> Sequence[Solution]:
    """What two processes come to that have half of the rows each.

    Raises:
        AssertionError: they do not call `group.totals` equally often.
    """
    barrier = Barrier(2)
    told: list[Told] = [None, None]
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(_Half(rank, barrier, told).solve, config, whole) for rank in range(2)]
    # The one that waited for a thread that failed has less to say than that one.
    running.sort(key=lambda future: isinstance(future.exception(), BrokenBarrierError))
    return [future.result() for future in running]
