"""Whether a sample is large enough to say that a latency percentile keeps a limit: MLPerf's early stopping.

If a share 1 - q or more of all requests exceeded the limit, t or fewer of n would do so with a probability of
at most P(Bin(n, 1 - q) <= t). Where that is at most 1 - c, the percentile is within the limit with confidence
c. MLPerf's LoadGen asks the same with c = 0.99 (mlcommons/inference, loadgen/early_stopping.cc); the bound
that it reports for a percentile is one order statistic higher than the exact one here, so it needs 662
requests for a p99 where this needs 459. Both take requests to be independent.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.records import Verdict

CONFIDENCE = 0.99
MOST_REQUESTS = 10_000
STEP = 1.1


@lru_cache(maxsize=64)
def binomial_cdf(n: int, p: float) -> NDArray[np.float64]:
    """P(Bin(n, p) <= k) for k = 0 … n, float64 [n + 1]; to be read only."""
    k = np.arange(n + 1)
    log_choose = math.lgamma(n + 1) - np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in k])
    return np.cumsum(np.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p)))


def tolerated(n: int, q: float) -> int:
    """How many of `n` requests may exceed a limit on percentile `q` that is still shown to be kept; -1: none.

    With none exceeding it, n = ln(0.01) / ln(q) are needed: 44 for p90, 459 for p99, 4603 for p99.9.
    """
    return int(np.searchsorted(binomial_cdf(n, 1 - q), 1 - CONFIDENCE, side="right")) - 1


def upper_bound(ordered: NDArray[np.float64], q: float) -> float | None:
    """What percentile `q` of ascending `ordered` is at most, with 99 % confidence; None for too few."""
    allowed = tolerated(len(ordered), q)
    return float(ordered[len(ordered) - 1 - allowed]) if allowed >= 0 else None


def verdict(over: int, n: int, q: float) -> Verdict:
    """Whether percentile `q` keeps a limit that `over` of `n` requests exceeded, with 99 % confidence."""
    below = binomial_cdf(n, 1 - q)
    if below[over] <= 1 - CONFIDENCE:
        return "pass"
    at_least = 1.0 - (below[over - 1] if over else 0.0)
    return "fail" if at_least <= 1 - CONFIDENCE else "inconclusive"


def requests_needed(over: int, n: int, q: float) -> int | None:
    """How many requests in all would decide, if a limit went on being exceeded as by `over` of `n`.

    Found to within a tenth; None where more than MOST_REQUESTS would be needed.
    """
    needed = float(n)
    while needed <= MOST_REQUESTS:
        whole = math.ceil(needed)
        if verdict(round(over * whole / n), whole, q) != "inconclusive":
            return whole
        needed *= STEP
    return None
