"""Looking at the data more than once. A test that is repeated at each look errs more often than it says.

Group-sequential bounds with the error spent over the looks by Lan & DeMets' (Biometrika 70, 1983) function of
O'Brien-Fleming type, α(t) = 2 - 2Φ(z_{α/2}/√t) with t the share of all planned items seen: early looks decide
only what is plain, and the last one has nearly the whole level left. Levels are made into bounds of small
samples as Jennison & Turnbull (2000, §3.8 and ch. 19) do: by Student's quantile at the look's nominal level.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.statistics.quantiles import normal_cdf, normal_quantile
from qdeploy.bench.statistics.verdicts import LEVEL

NODES = 96
REACH = 8.0
"""Standard deviations below 0 from which the integral begins."""
SEARCH_STEPS = 45


def spent(share: float, level: float = LEVEL) -> float:
    """The error that may have been spent when `share` of the items is seen."""
    return 2 * normal_cdf(-normal_quantile(1 - level / 2) / share**0.5)


@cache
def nominal_levels(shares: tuple[float, ...], level: float = LEVEL) -> tuple[float, ...]:
    """One-sided levels at each look with which the whole errs in a share `level` of runs.

    Args:
        shares: of the planned items seen at each look, rising, the last at most 1.
    """
    walk, found, before = _Walk(), [], 0.0
    for share in shares:
        total = spent(share, level)
        found.append(walk.step(share, total - before))
        before = total
    return tuple(found)


class _Walk:
    """The score statistic as a Brownian motion that is stopped above each look's bound.

    Its density at the last look is kept at Gauss-Legendre nodes (Armitage, McPherson & Rowe 1969).
    """

    def __init__(self) -> None:
        self.share = 0.0
        self.nodes: NDArray[np.float64] = np.zeros(1)
        self.mass: NDArray[np.float64] = np.ones(1)

    def step(self, share: float, error: float) -> float:
        """Go on to `share` and stop there with probability `error`; the nominal level of that bound."""
        scale = (share - self.share) ** 0.5
        low, high = -REACH, REACH
        for _ in range(SEARCH_STEPS):
            z = (low + high) / 2
            beyond = float(self.mass @ _normal_tail((z * share**0.5 - self.nodes) / scale))
            low, high = (z, high) if beyond > error else (low, z)
        self._advance(share, scale, bound=high * share**0.5)
        return normal_cdf(-high)

    def _advance(self, share: float, scale: float, bound: float) -> None:
        places, weights = _quadrature()
        start = -REACH * share**0.5
        half = (bound - start) / 2
        nodes = start + half * (places + 1)
        steps = (nodes[:, None] - self.nodes) / scale
        density = np.exp(-0.5 * steps * steps) @ self.mass / (scale * np.sqrt(2 * np.pi))
        self.share, self.nodes, self.mass = share, nodes, density * weights * half


@cache
def _quadrature() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.polynomial.legendre.leggauss(NODES)


def _normal_tail(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(Z > z) by interpolation, to a relative 1e-5."""
    places, tails = _tail_table()
    return np.interp(z, places, tails)


@cache
def _tail_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    places = np.arange(-REACH - 1, 12, 1e-3)
    return places, np.array([normal_cdf(-z) for z in places])


def repeated_p(p: float, shares: Sequence[float]) -> float:
    """What a nominal one-sided `p` at the last of several looks is worth.

    The least overall level at which that look decides (repeated p-value, Posch, Wassmer & Brannath 2008): it
    may be compared with any level and adjusted over tasks like an ordinary one.
    """
    if len(shares) <= 1 and (not shares or shares[-1] >= 1):
        return p
    low, high = 0.0, 1.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if p <= nominal_levels(tuple(shares), middle)[-1] else (middle, high)
    return high
