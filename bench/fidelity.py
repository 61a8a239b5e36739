"""How far a served model's predictions are from the baseline's, token by token on the same text.

Perplexity follows the GPTQ papers (see `bench/text.py`). The Kullback-Leibler divergence over a whole
vocabulary cannot be had over HTTP. Lumping tokens together makes a coarser distribution, whose divergence is
never larger (data processing inequality), so what is reported is a lower bound. Tokens that are in the top K
of both models stay single, and so does the token of the text, whose probability both return; the rest is one
lump. Its mean mass under the baseline, `tail_mass`, says how much may be hidden in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench import statistics
from qdeploy.bench.records import Estimate, Fidelity
from qdeploy.bench.text import Windows
from qdeploy.bench.token_table import TokenTable, concatenate, window_table
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.scores import Scores
from qdeploy.errors import ComparisonError
from qdeploy.progress import progress

RESOLUTION = 1e-6
"""Below this a lump's mass, 1 - Σp over float32 log-probabilities, is rounding. Raising the variant's lump to
it can only lower the bound."""


def score_windows(
    endpoint: Endpoint, windows: Windows, top_k: int, concurrency: int, order: Sequence[int] | None = None
) -> TokenTable:
    """Score every window; each answer becomes arrays as it arrives, so that few are held as JSON.

    Args:
        order: in which windows are sent; the table is in the text's order all the same.

    Raises:
        EndpointError: the endpoint fails, or returns no `top_k` prompt log-probabilities.
    """
    tables: dict[int, TokenTable] = {}
    order = range(len(windows.tokens)) if order is None else order
    with progress("Scoring text", len(windows.tokens)) as bar:

        def advance(_index: int, _scores: Scores) -> None:
            bar.advance()

        for first in range(0, len(order), concurrency):
            block = order[first : first + concurrency]
            answers = endpoint.score_many([windows.tokens[i] for i in block], top_k, concurrency, advance)
            tables |= {i: window_table(i, scores) for i, scores in zip(block, answers, strict=True)}
    return concatenate([tables[i] for i in sorted(tables)])


@dataclass(frozen=True)
class Divergence:
    """Per position, float64 [P]: KL(baseline ‖ variant) lower bound in nats; baseline mass in the lump."""

    kl: statistics.Array
    tail: statistics.Array


def divergence(baseline: TokenTable, variant: TokenTable) -> Divergence:
    """The lower bound at every position. Both tables are of the same tokens in the same order."""
    rows, k = baseline.top_ids.shape
    vocabulary = 1 + int(max(baseline.top_ids.max(), variant.top_ids.max()))
    row = np.repeat(np.arange(rows), k)
    _, ours, theirs = np.intersect1d(
        row * vocabulary + baseline.top_ids.ravel(),
        row * vocabulary + variant.top_ids.ravel(),
        assume_unique=True,
        return_indices=True,
    )
    p = np.exp(baseline.top_logprobs.ravel()[ours].astype(np.float64))
    q = np.exp(variant.top_logprobs.ravel()[theirs].astype(np.float64))
    atoms = row[ours]
    shared = baseline.top_ids.ravel()[ours] == baseline.token[atoms]
    extra = np.flatnonzero(np.bincount(atoms[shared], minlength=rows) == 0)
    atoms = np.concatenate([atoms, extra])
    p = np.concatenate([p, np.exp(baseline.logprob[extra].astype(np.float64))])
    q = np.concatenate([q, np.exp(variant.logprob[extra].astype(np.float64))])
    return _coarse(atoms, p, q, rows)


def _coarse(atoms: NDArray[np.int64], p: statistics.Array, q: statistics.Array, rows: int) -> Divergence:
    """KL over single tokens and the lump of the rest; `atoms` is the position of each single token."""
    tail_p = np.maximum(1 - np.bincount(atoms, p, minlength=rows), 0.0)
    tail_q = np.maximum(1 - np.bincount(atoms, q, minlength=rows), RESOLUTION)
    terms = _relative_entropy(p, np.maximum(q, np.finfo(np.float64).tiny))
    kl = np.bincount(atoms, terms, minlength=rows) + _relative_entropy(tail_p, tail_q)
    return Divergence(np.maximum(kl, 0.0), tail_p)


def _relative_entropy(p: statistics.Array, q: statistics.Array) -> statistics.Array:
    """p·ln(p/q), 0 where p is 0."""
    safe = np.where(p > 0, p, 1.0)
    return np.where(p > 0, p * np.log(safe / q), 0.0)


def summarize(windows: Windows, table: TokenTable, baseline: TokenTable | None) -> Fidelity:
    """The figures of a scored text, compared with the baseline's where there is one.

    Raises:
        ComparisonError: the baseline scored other tokens.
    """
    own = _window_means(table, -table.logprob.astype(np.float64))
    fidelity = Fidelity(
        text=windows.source,
        text_sha256=windows.text_sha256,
        windows=len(windows.tokens),
        window_tokens=len(windows.tokens[0]),
        positions=len(table.token),
        top_k=table.top_k,
        method="none",
        perplexity=_exponential(own),
    )
    return fidelity if baseline is None else compare_tables(fidelity, table, baseline)


def compare_tables(fidelity: Fidelity, table: TokenTable, baseline: TokenTable) -> Fidelity:
    """`fidelity`, whose table is `table`, with all that follows from the baseline's.

    Raises:
        ComparisonError: the baseline scored other tokens.
    """
    if not np.array_equal(table.token, baseline.token) or not np.array_equal(table.window, baseline.window):
        raise ComparisonError(
            f"The baseline's tokens.parquet holds other tokens than this run's {fidelity.positions}. "
            "Run the baseline again on the same text."
        )
    own, theirs = (_window_means(t, -t.logprob.astype(np.float64)) for t in (table, baseline))
    found = divergence(baseline, table)
    same = (table.top_ids[:, 0] == baseline.top_ids[:, 0]).astype(np.float64)
    return fidelity.model_copy(
        update={
            "method": "intersection",
            "baseline_perplexity": _exponential(theirs),
            "perplexity_ratio": _exponential(own - theirs),
            "kl_lower_bound": statistics.bootstrap_mean(found.kl, table.clusters),
            "tail_mass": float(found.tail.mean()),
            "same_top_token": statistics.bootstrap_mean(same, table.clusters),
            "per_window_kl": _window_means(table, found.kl).tolist(),
        }
    )


def _window_means(table: TokenTable, values: statistics.Array) -> statistics.Array:
    """Mean per window, float64 [W]."""
    return np.bincount(table.window, values) / np.bincount(table.window)


def _exponential(log_means: statistics.Array) -> Estimate:
    """exp of the mean over windows, with Student's t interval taken before the exp."""
    labels: Sequence[str] = [str(i) for i in range(len(log_means))]
    mean = statistics.mean_interval(log_means, labels)
    bounds = [None if bound is None else float(np.exp(bound)) for bound in (mean.low, mean.high)]
    return Estimate(value=float(np.exp(mean.value)), low=bounds[0], high=bounds[1])
