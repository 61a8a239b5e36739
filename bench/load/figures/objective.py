"""Whether a run met its service level objective, and its goodput."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.load.figures.early_stopping import upper_bound, verdict
from qdeploy.bench.load.figures.metrics import time_per_output_token_ms
from qdeploy.bench.load.figures.outcome import Outcome
from qdeploy.bench.load.figures.slo import Limit
from qdeploy.bench.records import Estimate, LimitResult, SloResult, Verdict
from qdeploy.bench.statistics import accuracy_interval

BLOCKS = 20
"""Stretches of time whose requests are taken as one cluster: requests that queue together fare alike."""


def judge(limits: Sequence[Limit], outcomes: Sequence[Outcome], duration_s: float) -> SloResult:
    """All attempted requests against the limits, a failed one as infinitely slow.

    TTFT and E2E count from the time a request was due. A request without a second token keeps any TPOT.
    Goodput is good requests / `duration_s`; its interval is the wider one of Wilson's, over requests, and one
    over blocks of time.
    """
    latencies = [_latencies(limit, outcomes) for limit in limits]
    judged = [_judge(limit, values) for limit, values in zip(limits, latencies, strict=True)]
    within = [values <= limit.ms for limit, values in zip(limits, latencies, strict=True)]
    good = np.logical_and.reduce(within).astype(np.float64)
    share = accuracy_interval(good, _time_blocks(outcomes))
    verdicts = [limit.verdict for limit in judged]
    order: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    return SloResult(
        limits=judged,
        met=all(r.over <= (1 - limit.q) * r.requests for limit, r in zip(limits, judged, strict=True)),
        verdict=next(verdict for verdict in order if verdict in verdicts),
        good_share=share,
        goodput=_scaled(share, len(outcomes) / duration_s),
    )


def _judge(limit: Limit, values: NDArray[np.float64]) -> LimitResult:
    over = int((values > limit.ms).sum())
    bound = upper_bound(np.sort(values), limit.q)
    return LimitResult(
        limit=str(limit),
        requests=len(values),
        over=over,
        bound_ms=bound if bound is not None and math.isfinite(bound) else None,
        verdict=verdict(over, len(values), limit.q),
    )


def _latencies(limit: Limit, outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """The limited latency of each request in ms, float64 [n]."""
    return np.array([math.inf if o.error else _latency(limit, o) for o in outcomes])


def _latency(limit: Limit, outcome: Outcome) -> float:
    if limit.metric == "tpot":
        return time_per_output_token_ms(outcome) or 0.0
    reached = outcome.first_token_ns if limit.metric == "ttft" else outcome.last_token_ns
    assert reached is not None, "a completed request has its times"
    elapsed = (reached - outcome.scheduled_ns) / 1e6
    return elapsed / (outcome.output_tokens or 1) if limit.metric == "ntpot" else elapsed


def _time_blocks(outcomes: Sequence[Outcome]) -> list[str]:
    """Which of BLOCKS equal stretches of the run each request was due in."""
    due = np.array([o.scheduled_ns for o in outcomes], dtype=np.float64)
    span = max(float(np.ptp(due)), 1.0)
    return [str(int(block)) for block in np.minimum((due - due.min()) / span * BLOCKS, BLOCKS - 1)]


def _scaled(share: Estimate, factor: float) -> Estimate:
    low, high = share.low, share.high
    return Estimate(
        value=share.value * factor,
        low=None if low is None else low * factor,
        high=None if high is None else high * factor,
    )
