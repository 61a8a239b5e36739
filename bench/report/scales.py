"""Axes: where a value goes, and which round values are marked on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Scale = Callable[[float], float]

DECADES = 1.0
"""Positive values that span more than this many powers of ten are drawn on a logarithmic axis."""


def linear(low: float, high: float, start: float, stop: float) -> Scale:
    """Map [low, high] to [start, stop]; a range of no extent maps to `start`."""
    span = high - low
    return lambda value: start + (value - low) / span * (stop - start) if span else start


def logarithmic(low: float, high: float, start: float, stop: float) -> Scale:
    """Map positive [low, high] to [start, stop], equal ratios equally far; what is less goes to `start`."""
    inner = linear(math.log(low), math.log(high), start, stop)
    return lambda value: inner(math.log(max(value, low)))


@dataclass(frozen=True)
class Axis:
    """A range of values, how they are spaced on it, and those that are labelled."""

    low: float
    high: float
    marks: Sequence[float]
    is_log: bool = False

    def scale(self, start: float, stop: float) -> Scale:
        return (logarithmic if self.is_log else linear)(self.low, self.high, start, stop)


def fitted(values: Sequence[float], most: int = 5, room: float = 0.06) -> Axis:
    """An axis around the values: logarithmic if they span decades, else from 0 where that is not far.

    Args:
        most: about how many marks.
        room: left free at either end, as a part of the range.
    """
    low, high = min(values), max(values)
    if low > 0 and math.log10(high / low) > DECADES:
        margin = (high / low) ** room
        low, high = low / margin, high * margin
        return Axis(low, high, log_ticks(low, high, most + 1), is_log=True)
    from_zero = 0 <= low < high / 4
    margin = (high - (0.0 if from_zero else low) or abs(high) or 1.0) * room
    low, high = 0.0 if from_zero else low - margin, high + margin
    return Axis(low, high, ticks(low, high, most))


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round values covering [low, high]; the ends lie at or inside the range."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values inside [low, high]: 1, 2 and 5 of each power of ten, or fewer where that is many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        marks = [digit * 10.0**power for power in powers for digit in digits]
        inside = [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
        if len(inside) <= most:
            break
    return inside


def nice_top(values: Sequence[float]) -> float:
    """A round number at or above the largest value; 1 where there is nothing to show."""
    top = max(values, default=0.0)
    if top <= 0:
        return 1.0
    step = ticks(0, top)
    return math.ceil(top / step[1] - 1e-9) * step[1] if len(step) > 1 else top


def tick_label(value: float) -> str:
    return f"{value:,.6g}".replace("-", "−")
