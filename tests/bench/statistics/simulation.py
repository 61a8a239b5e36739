"""Draws from known truths, and what "within Monte-Carlo error" means."""

from __future__ import annotations

import math

import numpy as np

from qdeploy.bench.statistics import Array, Pairs

ERRORS = 4.0
"""Binomial standard errors that a simulated rate may be off: by chance in one test of 16,000."""


def monte_carlo_error(rate: float, runs: int) -> float:
    """ERRORS binomial standard errors of a rate over `runs` simulations."""
    return ERRORS * math.sqrt(rate * (1 - rate) / runs)


def agrees(hits: int, runs: int, nominal: float) -> bool:
    """Whether the simulated rate is the nominal one within Monte-Carlo error."""
    return abs(hits / runs - nominal) <= monte_carlo_error(nominal, runs)


def at_most(hits: int, runs: int, nominal: float) -> bool:
    """Whether the simulated rate is not above the nominal one beyond Monte-Carlo error."""
    return hits / runs <= nominal + monte_carlo_error(nominal, runs)


def at_least(hits: int, runs: int, nominal: float) -> bool:
    """Whether the simulated rate is not below the nominal one beyond Monte-Carlo error."""
    return hits / runs >= nominal - monte_carlo_error(nominal, runs)


def labels(n: int, size: int = 1) -> list[str]:
    """Clusters of `size` neighbouring items."""
    return [str(i // size) for i in range(n)]


def answers(
    rng: np.random.Generator, n: int, accuracy: float, lost: float, gained: float, size: int = 1
) -> Pairs:
    """Right and wrong answers of two models, alike within clusters of `size`: design effect `size`.

    Args:
        accuracy: of the baseline.
        lost, gained: shares of all items that only the baseline or only the variant gets right.
    """
    shares = [accuracy - lost, lost, gained, 1 - accuracy - gained]
    kinds = np.repeat(rng.choice(4, size=n // size, p=shares), size)
    return Pairs((kinds < 2).astype(float), ((kinds == 0) | (kinds == 2)).astype(float), labels(n, size))


def clustered_normal(rng: np.random.Generator, clusters: int, size: int) -> Array:
    """Values of mean 1 whose clusters differ as much as their items."""
    return 1 + np.repeat(rng.normal(size=clusters), size) + rng.normal(size=clusters * size)
