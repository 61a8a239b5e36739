"""When the requests of an open loop are due."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray


def arrival_times(
    arrival: Literal["poisson", "constant"], rate: float, count: int, seed: int
) -> NDArray[np.int64]:
    """Due times in ns from the start, ascending, shape [count]; the first is 0.

    Poisson gaps are exponential and then scaled so that their mean is exactly 1/rate: a Poisson process given
    its number of arrivals. Unscaled, the rate of a run would scatter by 1/sqrt(count) around what was asked.
    """
    gaps = np.ones(count - 1)
    if arrival == "poisson":
        gaps = np.random.default_rng(seed).exponential(size=count - 1)
        gaps /= gaps.mean()
    times = np.concatenate([[0.0], np.cumsum(gaps)]) / rate
    return np.rint(times * 1e9).astype(np.int64)
