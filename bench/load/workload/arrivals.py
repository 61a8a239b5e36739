"""When the requests of an open loop are due."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.load.spec import OpenArrival


def arrival_times(
    arrival: OpenArrival,
    rate: float,
    count: int,
    seed: int,
    *,
    end_rate: float | None = None,
    burstiness: float = 1.0,
) -> NDArray[np.int64]:
    """Due times in ns from the start, ascending, shape [count]; the first is 0.

    Random gaps are scaled so that the mean rate is exactly what was asked: a Poisson process given its number
    of arrivals. Unscaled, the rate of a run would scatter by 1/sqrt(count) around it. A ramp from `rate` to
    `end_rate` stretches the same process by the inverse of its cumulative rate, Λ(t) = rate·t + a·t² with
    a = (end_rate² - rate²) / 4(count - 1) (time change of a point process; Daley & Vere-Jones, section 7.4).
    """
    expected = np.concatenate([[0.0], np.cumsum(_unit_gaps(arrival, count - 1, seed, burstiness))])
    slope = ((end_rate or rate) ** 2 - rate**2) / (count - 1)
    times = 2 * expected / (rate + np.sqrt(rate**2 + slope * expected))
    return np.rint(times * 1e9).astype(np.int64)


def _unit_gaps(arrival: OpenArrival, count: int, seed: int, burstiness: float) -> NDArray[np.float64]:
    """`count` gaps with a mean of exactly 1."""
    if arrival == "constant":
        return np.ones(count)
    gaps = np.random.default_rng(seed).gamma(burstiness if arrival == "gamma" else 1.0, size=count)
    return gaps / float(gaps.mean())
