"""Throughput while the load was fully on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qdeploy.bench.load.figures.outcome import Outcome
from qdeploy.bench.records import SteadyWindow

BUSY = 0.9
"""A closed loop is fully on while at least this share of its users waits for an answer."""


def steady_window(outcomes: Sequence[Outcome], users: int | None) -> SteadyWindow | None:
    """The window and its throughput, None if the load was never fully on.

    An open loop is fully on from the end of its first request to the last arrival, a closed loop of `users`
    from the first to the last time that BUSY of them wait.
    """
    start, end = _filled(outcomes, users * BUSY) if users else _arriving(outcomes)
    if end <= start:
        return None
    seconds = (end - start) / 1e9
    done = [o for o in outcomes if o.error is None]
    completed = sum(start < o.end_ns <= end for o in done)
    return SteadyWindow(
        start_s=start / 1e9,
        end_s=end / 1e9,
        requests=completed,
        request_throughput=completed / seconds,
        output_token_throughput=sum(_tokens_between(o, start, end) for o in done) / seconds,
    )


def _arriving(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    return min(o.end_ns for o in outcomes), max(o.dispatched_ns for o in outcomes)


def _filled(outcomes: Sequence[Outcome], least: float) -> tuple[int, int]:
    """When `least` requests were first and last in flight; (0, 0) if never."""
    changes = sorted([(o.dispatched_ns, 1) for o in outcomes] + [(o.end_ns, -1) for o in outcomes])
    in_flight = np.cumsum([step for _, step in changes])
    busy = np.flatnonzero(in_flight >= least)
    if len(busy) == 0:
        return 0, 0
    return changes[busy[0]][0], changes[busy[-1] + 1][0]


def _tokens_between(outcome: Outcome, start: int, end: int) -> float:
    """Output tokens that came in [start, end]; those of an answer in one piece are spread over its time."""
    total = outcome.output_tokens or 0
    if outcome.chunk_ns:
        share = total / len(outcome.chunk_ns)
        each: Sequence[float] = outcome.chunk_tokens or [share] * len(outcome.chunk_ns)
        return sum(n for t, n in zip(outcome.chunk_ns, each, strict=True) if start <= t <= end)
    took = max(outcome.end_ns - outcome.dispatched_ns, 1)
    overlap = min(end, outcome.end_ns) - max(start, outcome.dispatched_ns)
    return total * max(overlap, 0) / took
