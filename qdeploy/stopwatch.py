"""Where the time of a run goes.

A part inside another is not counted in the outer one, so parts add up to the run less what is in none.
Computations that take turns (see `halting`) may open them; threads that run at the same time may not: what
they overlap is time that nobody waits for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Part = Literal["load", "reference", "forward", "hessian", "solve", "tune", "pack", "write"]


class _Stopwatch:
    """Charges the time since the last change of parts to the innermost open one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[Part] = []
        self._since = 0.0

    def enter(self, part: Part) -> None:
        self._charge()
        self._open.append(part)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


_running: list[_Stopwatch] = []


@contextmanager
def measuring() -> Iterator[dict[str, float]]:
    """Yields part → seconds, which fills while the block runs."""
    watch = _Stopwatch()
    _running.append(watch)
    try:
        yield watch.seconds
    finally:
        _running.remove(watch)


@contextmanager
def part(name: Part) -> Iterator[None]:
    """Charge the block, or the decorated function, to `name` while someone measures."""
    watch = _running[-1] if _running else None
    if watch is None:
        yield
        return
    watch.enter(name)
    try:
        yield
    finally:
        watch.leave()
