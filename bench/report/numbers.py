"""Figures as people read them. Every function takes what a record holds and returns plain text."""

from __future__ import annotations

import math
from collections.abc import Callable

from qdeploy.bench.records import Estimate

Formatter = Callable[[float], str]

MISSING = "not measured"
MINUS = "−"


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


def milliseconds(value: float | None) -> str:
    return MISSING if value is None else f"{number(value)} ms"


def size(count: int | float | None) -> str:
    """Bytes in decimal units, as disks and model cards count."""
    if count is None:
        return "unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{number(count / scale)} {unit}"
    return f"{count} B"


def percent(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{value * 100:.{digits}f} %".replace("-", MINUS)


def points(value: float, digits: int = 2) -> str:
    """A difference of two proportions, in percentage points with its sign."""
    return f"{value * 100:+.{digits}f} pp".replace("-", MINUS)


def p_value(value: float | None) -> str:
    if value is None:
        return MISSING
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def interval(estimate: Estimate) -> str:
    """The confidence interval alone, or that there is none."""
    return _interval(estimate, number)


def interval_percent(estimate: Estimate) -> str:
    return _interval(estimate, percent)


def interval_points(estimate: Estimate) -> str:
    return _interval(estimate, points)


def estimate(value: Estimate | None) -> str:
    """A figure with its interval, e.g. "1.04 (95 % CI 1.02 to 1.06)"."""
    return MISSING if value is None else f"{number(value.value, 4)} ({_interval(value, number)})"


def estimate_percent(value: Estimate | None) -> str:
    return MISSING if value is None else f"{percent(value.value)} ({_interval(value, percent)})"


def estimate_points(value: Estimate | None) -> str:
    return MISSING if value is None else f"{points(value.value)} ({_interval(value, points)})"


def times(value: Estimate | None) -> str:
    """A ratio, e.g. "×0.68 (95 % CI 0.64 to 0.71)"."""
    return MISSING if value is None else f"×{number(value.value)} ({interval(value)})"


def _interval(estimate: Estimate, text: Formatter) -> str:
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"95 % CI {text(estimate.low)} to {text(estimate.high)}"
