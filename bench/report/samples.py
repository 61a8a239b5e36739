"""The latencies of single requests, from the table that a load run leaves beside its record."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qdeploy.bench.load.figures.metrics import pooled_gaps, request_latencies
from qdeploy.bench.load.figures.table import read_requests
from qdeploy.bench.report.collect import Variant
from qdeploy.errors import ComparisonError

MOST = 250
"""Steps that a curve is drawn with."""


def latency_samples(variant: Variant) -> dict[str, NDArray[np.float64]]:
    """The latencies of the completed requests, ms ascending, by the keys of `LoadResult.metrics`.

    Gaps between tokens are pooled over requests. Nothing where there was no load run or its table is gone.

    Raises:
        ComparisonError: the table is broken.
    """
    load = variant.bench.load if variant.bench else None
    if load is None or variant.requests is None:
        return {}
    try:
        outcomes = read_requests(variant.requests)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise ComparisonError(f"{variant.requests} is broken: {error}. Measure again.") from error
    done = [outcome for outcome in outcomes if outcome.error is None]
    streamed = "ttft_ms" in load.metrics
    found = request_latencies(done, scheduled=load.arrival != "closed", streamed=streamed)
    if streamed:
        found |= pooled_gaps(done)
    return {key: np.sort(np.array(ms, np.float64)) for key, ms in found.items() if ms}


def steps(ordered: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The empirical distribution of ascending values: (value, share at or below it), at most MOST of each.

    Of more values every so-manieth is taken, the first and the last always: nowhere is a curve through them
    off by more than 1 / (MOST - 1) of the values.
    """
    n = len(ordered)
    ranks = np.unique(np.linspace(0, n - 1, min(n, MOST)).round().astype(np.int64))
    return ordered[ranks], (ranks + 1) / n
