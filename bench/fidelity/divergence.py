"""Kullback-Leibler divergence of a served model from the baseline, per position, as a lower bound.

The divergence over a whole vocabulary cannot be had over HTTP. Lumping tokens together makes a coarser
distribution, whose divergence is never larger (data processing inequality). Which tokens stay single is the
method; the rest is one lump, and what that hides is exactly p_R · KL(P_R ‖ Q_R), with p_R the baseline's mass
in the lump and P_R, Q_R the two distributions inside it (chain rule).

    two-pass      the baseline's top K, which the variant was asked to score by their ids
    intersection  the tokens in the top K of both, where an engine scores no chosen ids

The token of the text, whose probability both models return, stays single in either. Bounds of different
methods, or of different K, are of different tightness: they are not comparable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.fidelity.token_table import TokenTable
from qdeploy.bench.statistics import Array
from qdeploy.errors import ComparisonError

RESOLUTION = 1e-6
"""Below this a lump's mass, 1 - Σp over float32 log-probabilities, is rounding. Raising the variant's lump to
it can only lower the bound."""


@dataclass(frozen=True)
class Divergence:
    """Per position, float64 [P]: KL(baseline ‖ variant) lower bound in nats; baseline mass in the lump."""

    kl: Array
    tail: Array


def two_pass(baseline: TokenTable, variant: TokenTable) -> Divergence:
    """The bound where the variant scored the baseline's top K. Both tables are of the same tokens.

    Raises:
        ComparisonError: the variant scored other ids, or none.
    """
    if variant.chosen is None or variant.chosen_ids is None:
        raise ComparisonError("The run holds no log-probabilities of tokens that a baseline chose.")
    if not np.array_equal(variant.chosen_ids, baseline.top_ids):
        raise ComparisonError("The run holds log-probabilities of tokens that another baseline chose.")
    rows, k = baseline.top_ids.shape
    row = np.repeat(np.arange(rows), k)
    return _coarse(
        baseline,
        variant,
        row,
        baseline.top_ids.ravel(),
        baseline.top_logprobs.ravel(),
        variant.chosen.ravel(),
    )


def intersection(baseline: TokenTable, variant: TokenTable) -> Divergence:
    """The bound from the top K of both. Both tables are of the same tokens in the same order."""
    rows, k = baseline.top_ids.shape
    vocabulary = 1 + int(max(baseline.top_ids.max(), variant.top_ids.max()))
    row = np.repeat(np.arange(rows), k)
    _, ours, theirs = np.intersect1d(
        row * vocabulary + baseline.top_ids.ravel(),
        np.repeat(np.arange(rows), variant.top_k) * vocabulary + variant.top_ids.ravel(),
        assume_unique=True,
        return_indices=True,
    )
    return _coarse(
        baseline,
        variant,
        row[ours],
        baseline.top_ids.ravel()[ours],
        baseline.top_logprobs.ravel()[ours],
        variant.top_logprobs.ravel()[theirs],
    )


def _coarse(
    baseline: TokenTable,
    variant: TokenTable,
    row: NDArray[np.int64],
    token: NDArray[np.int32],
    p_log: NDArray[np.float32],
    q_log: NDArray[np.float32],
) -> Divergence:
    """KL over single tokens, each with its row, and the lump of the rest."""
    rows = len(baseline.token)
    named = token == baseline.token[row]
    extra = np.flatnonzero(np.bincount(row[named], minlength=rows) == 0)
    row = np.concatenate([row, extra])
    p = np.exp(np.concatenate([p_log, baseline.logprob[extra]]).astype(np.float64))
    q = np.exp(np.concatenate([q_log, variant.logprob[extra]]).astype(np.float64))
    tail_p = np.maximum(1 - np.bincount(row, p, minlength=rows), 0.0)
    tail_q = np.maximum(1 - np.bincount(row, q, minlength=rows), RESOLUTION)
    terms = _relative_entropy(p, np.maximum(q, np.finfo(np.float64).tiny))
    kl = np.bincount(row, terms, minlength=rows) + _relative_entropy(tail_p, tail_q)
    return Divergence(np.maximum(kl, 0.0), tail_p)


def _relative_entropy(p: Array, q: Array) -> Array:
    """p·ln(p/q), 0 where p is 0."""
    safe = np.where(p > 0, p, 1.0)
    return np.where(p > 0, p * np.log(safe / q), 0.0)
