"""Distribution functions and quantiles that the intervals need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

LARGE_DF = 200
"""From here on the expansion of Student's quantile in 1/df is exact to seven digits."""


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(probability)


def normal_cdf(z: float) -> float:
    """P(Z <= z), with full relative precision in the lower tail."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def student_cdf(t: float, df: int) -> float:
    """P(T <= t) for integer degrees of freedom, by the finite series of Abramowitz & Stegun 26.7.3-4."""
    theta = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(theta), math.sin(theta)
    term, total = (1.0, 0.0) if df % 2 == 0 else (cosine, theta)
    for j in range(df % 2, df - 1, 2):
        total += sine * term
        term *= cosine * cosine * (j + 1) / (j + 2)
    within = total if df % 2 == 0 else 2 / math.pi * total
    return 0.5 + within / 2


@cache
def student_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t for `probability` in (0, 1).

    By bisection of its distribution function; from LARGE_DF on by Abramowitz & Stegun 26.7.5.
    """
    if probability < 0.5:
        return -student_quantile(1 - probability, df)
    if df >= LARGE_DF:
        return _expansion(normal_quantile(probability), df)
    low, high = 0.0, 1.0
    while student_cdf(high, df) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, df) < probability else (low, middle)
    return (low + high) / 2


def _expansion(z: float, df: int) -> float:
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / df + second / df**2 + third / df**3


def satterthwaite(variances: Sequence[float], dfs: Sequence[int]) -> int:
    """Degrees of freedom of a sum of independent variances, (Σ V)² / Σ V²/df, rounded down (Welch 1947)."""
    parts = sum(v * v / df for v, df in zip(variances, dfs, strict=True))
    # Of a single variance it is its df, which rounding must not take to the number below.
    return max(int(sum(variances) ** 2 / parts * (1 + 1e-12)), 1) if parts else sum(dfs)
