"""What llama.cpp's `perplexity --kl-divergence` prints, with errors by window instead of by token.

Tokens of one window depend on each other, and an error that takes them for independent is too small:
`design_effect` says by how much, as the ratio of the two variances of the mean ln p difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qdeploy.bench import statistics
from qdeploy.bench.fidelity.token_table import TokenTable
from qdeploy.bench.records import Estimate, TokenStatistics
from qdeploy.bench.statistics import Array

KL_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
DP_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)


LARGEST = 700.0
"""Nats whose exp still is a float64; a model that rules out what the text holds gets beyond."""


def perplexity(nats: float) -> float:
    """exp of a mean −ln p, and never more than a float64 holds."""
    return math.exp(min(nats, LARGEST))


def token_statistics(
    baseline: TokenTable, variant: TokenTable, kl: Array, clusters: Sequence[str]
) -> TokenStatistics:
    """The table for two models on the same tokens; `kl` float64 [P] is the bound at each position."""
    ours, theirs = -variant.logprob.astype(np.float64), -baseline.logprob.astype(np.float64)
    difference = ours - theirs
    change = np.exp(-ours) - np.exp(-theirs)
    return TokenStatistics(
        ln_perplexity_correlation=_correlation(ours, theirs),
        ln_perplexity_ratio=statistics.mean_interval(difference, clusters),
        perplexity_difference=_perplexity_difference(ours, theirs, clusters),
        design_effect=statistics.design_effect(difference, clusters),
        kl_percentiles=_percentiles(kl, KL_PERCENTILES),
        dp_mean=statistics.mean_interval(change, clusters),
        dp_rms=statistics.mean_interval(change**2, clusters).mapped(lambda x: math.sqrt(max(x, 0.0))),
        dp_percentiles=_percentiles(change, DP_PERCENTILES),
    )


def _correlation(a: Array, b: Array) -> float | None:
    """Pearson's r; None where one of them does not vary."""
    spread = float(a.std() * b.std())
    return float(np.mean((a - a.mean()) * (b - b.mean()))) / spread if spread > 0 else None


def _perplexity_difference(ours: Array, theirs: Array, clusters: Sequence[str]) -> Estimate:
    """PPL(variant) − PPL(baseline), its error by the delta method: Var ≈ Var(PPL_v·x̄_v − PPL_b·x̄_b)."""
    high, low = perplexity(ours.mean()), perplexity(theirs.mean())
    moved = statistics.mean_interval(high * (ours - ours.mean()) - low * (theirs - theirs.mean()), clusters)
    return moved.mapped(lambda step: high - low + step)


def _percentiles(values: Array, which: Sequence[float]) -> dict[str, float]:
    """Maximum, percentiles (interpolated, as numpy does) and minimum, largest first."""
    found = np.percentile(values, which)
    named = {f"{q:g}%": float(value) for q, value in zip(which, found, strict=True)}
    return {"maximum": float(values.max()), **named, "minimum": float(values.min())}
