"""A decision on one variant, and the figure that it turned on, as people read them."""

from __future__ import annotations

from qdeploy.bench.records import Decision, Optimum, Standing, Verdict
from qdeploy.bench.report import numbers
from qdeploy.bench.statistics import high_of, low_of

WORDS: dict[Verdict, str] = {"pass": "may be deployed", "fail": "turned down", "inconclusive": "open"}


def standing_words(decision: Decision, standing: Standing) -> str:
    """What is decided on one variant."""
    return "recommended" if standing.name == decision.recommended else WORDS[standing.verdict]


def figure_words(standing: Standing, optimize: Optimum) -> str:
    """What was optimized, of one variant, with its bounds."""
    figure = standing.figure
    if figure is None:
        return "not known"
    if optimize == "size":
        return numbers.size(figure.value)
    if optimize == "cost":
        return numbers.estimate(figure)
    low, high = low_of(figure), high_of(figure)
    if low == high:
        return _rate(low)
    shown = f"{_rate(low)} shown" if low else "none shown"
    return f"{shown}, up to {_rate(high)} not ruled out"


def _rate(value: float) -> str:
    return f"{numbers.number(value)}{numbers.JOIN}requests/s"
