"""Figures as people read them. Every function takes what a record holds and returns plain text.

Intervals stand in brackets, [low, high], and are 95 % confidence intervals throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from qdeploy.bench.records import Estimate

Formatter = Callable[[float], str]

MISSING = "not measured"
MINUS = "−"
JOIN = "\u00a0"
"""No-break space, between a figure and its unit."""


def number(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, thousands separated, no exponent from 1e-4 up."""
    if not math.isfinite(value):
        return "∞" if value > 0 else f"{MINUS}∞" if value < 0 else "not a number"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}".replace("-", MINUS)


def samples(count: int, of: str = "") -> str:
    """A sample size, e.g. "n = 1,234 tokens"."""
    return JOIN.join(["n", "=", f"{count:,}", *of.split()])


def milliseconds(value: float | None) -> str:
    return MISSING if value is None else f"{number(value)}{JOIN}ms"


def size(count: int | float | None) -> str:
    """Bytes in decimal units, as disks and model cards count."""
    if count is None:
        return "unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{number(count / scale)}{JOIN}{unit}"
    return f"{count}{JOIN}B"


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{_percent(value)}{JOIN}%"


def points(value: float) -> str:
    """A difference of two proportions, in percentage points with its sign."""
    return f"{_points(value)}{JOIN}pp"


def p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return JOIN.join(("p", "<", "0.001") if value < 0.001 else ("p", "=", f"{value:.3f}"))


def interval(estimate: Estimate) -> str:
    """The confidence interval alone, or that there is none."""
    return _interval(estimate, number)


def interval_percent(estimate: Estimate) -> str:
    return _interval(estimate, _percent)


def interval_points(estimate: Estimate) -> str:
    return _interval(estimate, _points)


def estimate(value: Estimate | None) -> str:
    """A figure with its interval, e.g. "1.04 [1.02, 1.06]"."""
    return MISSING if value is None else f"{number(value.value)} {interval(value)}"


def estimate_percent(value: Estimate | None) -> str:
    return MISSING if value is None else f"{percent(value.value)} {interval_percent(value)}"


def estimate_points(value: Estimate | None) -> str:
    return MISSING if value is None else f"{points(value.value)} {interval_points(value)}"


def times(value: Estimate) -> str:
    """A ratio, e.g. "×0.68 [0.64, 0.71]"."""
    return f"×{number(value.value)} {interval(value)}"


def _percent(value: float) -> str:
    return f"{round(value * 100, 1) + 0.0:.1f}".replace("-", MINUS)


def _points(value: float) -> str:
    return f"{value * 100:+.2f}".replace("-", MINUS)


def _interval(estimate: Estimate, text: Formatter) -> str:
    if estimate.low is None or estimate.high is None:
        return "[no interval]"
    return f"[{text(estimate.low)},{JOIN}{text(estimate.high)}]"
