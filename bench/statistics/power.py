"""How many items it takes, and what a number of items can show (80 % power throughout)."""

from __future__ import annotations

import math

from qdeploy.bench.statistics.intervals import CONFIDENCE
from qdeploy.bench.statistics.quantiles import normal_quantile

POWER = 0.80


def items_for_verdict(churn: float, slack: float, design: float = 1.0) -> int:
    """Items needed to show a difference of `slack` to the margin, one-sided 5 %.

    n = design · (z₀.₉₅ + z₀.₈)² · churn / slack², with churn the share of items that flip, or another
    variance of one item's difference. For models that score alike, slack is the margin in absolute accuracy.
    """
    z = normal_quantile(CONFIDENCE) + normal_quantile(POWER)
    return math.ceil(design * z * z * churn / (slack * slack))


def items_for_difference(churn: float, difference: float) -> int:
    """Items needed to see `difference` in accuracy, two-sided 5 % (Connor 1987).

    n = (z₀.₉₇₅·√ψ + z₀.₈·√(ψ - Δ²))² / Δ², with ψ the churn. Needs ψ >= |Δ|.
    """
    spread = math.sqrt(churn - difference * difference)
    root = normal_quantile(0.975) * math.sqrt(churn) + normal_quantile(POWER) * spread
    return math.ceil(root * root / (difference * difference))


def detectable_difference(churn: float, items: int) -> float | None:
    """The smallest difference that `items` items show, two-sided 5 %.

    None where so few items change that not even changes in one direction only would show.
    """
    if churn == 0 or items_for_difference(churn, churn) > items:
        return None
    low, high = 0.0, churn
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if items_for_difference(churn, middle) > items else (low, middle)
    return high
