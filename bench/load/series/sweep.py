"""A sweep of the request rate to saturation, and the highest rate that meets an objective."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qdeploy.bench.load.series.series import Series
from qdeploy.bench.records import LoadResult, SeriesRecord
from qdeploy.errors import EndpointError, UsageError

FRACTIONS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2)
"""Rates of a sweep, as parts of the throughput when all requests are sent at once."""

KEPT = 0.95
"""An endpoint is saturated at a rate of which it completes less than this part, by more than chance."""

GROWTH = 1.5
MOST_STEPS = 8
PRECISION = 1.1
"""A search ends when the lowest rate that failed is at most this factor over the highest that did not."""


def sweep(series: Series) -> None:
    """Runs from a fifth of the throughput at full load until the endpoint is saturated."""
    full = series.all_at_once().request_throughput
    for fraction in FRACTIONS:
        series.at(full * fraction)
    for _ in range(MOST_STEPS):
        highest = max(series.results)
        if saturated(series.results[highest]):
            break
        series.at(highest * GROWTH)


def search(series: Series) -> None:
    """Runs that enclose the highest rate within the objective, to PRECISION.

    From half the throughput at full load the rate is changed by GROWTH until one rate meets the limits and
    one does not; what lies between is halved on the log scale. A run meets them by its observed shares,
    unless it saturates the endpoint; what they prove is in its `slo.verdict`. What one request after another
    does not meet, no rate does.

    Raises:
        EndpointError: requests that have the endpoint to themselves break the limits.
        UsageError: even all requests at once keep them, so no rate can be too high for so few.
    """
    slo = series.alone().slo
    if slo and not slo.met:
        over = ", ".join(f"{limit.over} of {limit.requests} over {limit.limit}" for limit in slo.limits)
        raise EndpointError(
            f"No rate can meet the objective: of requests sent one after another, {over}. Ask for less."
        )
    full = series.all_at_once()
    if full.slo and full.slo.met:
        raise UsageError(
            f"All {full.requests} requests at once meet the objective, so no rate is too high for so few. "
            "Raise --num-requests."
        )
    rate = full.request_throughput / 2
    met, failed = 0.0, math.inf
    for _ in range(2 * MOST_STEPS):
        if _met(series.at(rate), saturating_rate(series.results)):
            met = max(met, rate)
        else:
            failed = min(failed, rate)
        if failed <= met * PRECISION:
            break
        rate = _between(met, failed)


def _between(met: float, failed: float) -> float:
    """The next rate to try, above `met` and below `failed`."""
    if failed == math.inf:
        return met * GROWTH
    return math.sqrt(met * failed) if met else failed / GROWTH


def summarize_series(results: dict[float, LoadResult]) -> SeriesRecord:
    """All runs by rate, the capacity that they show, and the highest rate within the objective."""
    rates = sorted(results)
    saturating = saturating_rate(results)
    return SeriesRecord(
        capacity=_fitted(results),
        kept_rate=max((r for r in rates if r < saturating), default=None),
        saturating_rate=saturating if saturating < math.inf else None,
        best_rate=max((rate for rate in rates if _met(results[rate], saturating)), default=None),
        runs=[results[rate] for rate in rates],
    )


def saturating_rate(results: dict[float, LoadResult]) -> float:
    """The lowest rate above the fitted capacity that saturated the endpoint; infinite if none did.

    A single short run may have met a stall: what counts is what all of them show.
    """
    fitted = _fitted(results)
    return min((r for r, found in results.items() if r > fitted and saturated(found)), default=math.inf)


def _fitted(results: dict[float, LoadResult]) -> float:
    rates = sorted(results)
    return capacity(rates, [completion_rate(results[rate]) for rate in rates])


def capacity(offered: Sequence[float], completed: Sequence[float]) -> float:
    """The C of the model "completed = min(offered, C)" nearest to what was seen; `offered` ascends.

    Nearest on the log scale: Σ (ln completed - ln min(offered, C))² is least. If the last m rates saturate, C
    is the geometric mean of their completions, kept within the rates around it; of all m the best is taken.
    """
    x, y = np.log(offered), np.log(completed)
    candidates = [float(np.clip(y[k:].mean(), x[k - 1] if k else -math.inf, x[k])) for k in range(len(x))]
    return math.exp(min(candidates, key=lambda c: float(((y - np.minimum(x, c)) ** 2).sum())))


def completion_rate(result: LoadResult) -> float:
    """Requests completed per second: in the steady window, or from the first end to the last; the larger.

    While requests come, an engine that shares itself among all of them leaves ever more unfinished, and the
    window shows as little as half of what it can do, however long the run. The last end may be one
    straggler's. At most what was offered: after a stall more complete than come, which no endpoint can go on
    with. The first request of an open loop is sent at 0, so both are on one clock.
    """
    steady = result.steady
    if steady is None or not steady.requests:
        seen = result.request_throughput
    else:
        to_the_end = (result.completed - 1) / (result.duration_s - steady.start_s)
        seen = max(steady.request_throughput, to_the_end)
    return min(seen, result.rate or seen)


def saturated(result: LoadResult) -> bool:
    """Whether less than KEPT of what was offered was completed in the same time, by more than chance.

    Arrivals in the steady window are binomial, of all that were sent: two standard deviations of them must be
    missing. The window ends with an arrival, which cannot be completed in it.
    """
    rate, steady = result.rate or 0.0, result.steady
    if completion_rate(result) >= KEPT * rate:
        return False
    if steady is None or not steady.requests:
        return True
    offered = rate * (steady.end_s - steady.start_s)
    share = min(offered / result.requests, 1.0)
    return offered - 1 - steady.requests > 2 * math.sqrt(result.requests * share * (1 - share))


def _met(result: LoadResult, saturating: float) -> bool:
    """Whether the limits were kept, and could be for longer: a saturated endpoint's queue only grows."""
    return result.slo is not None and result.slo.met and (result.rate or 0.0) < saturating
