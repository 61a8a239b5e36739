"""How far a served model's predictions are from the baseline's, token by token on the same text.

The protocol (`bench/protocols.py`) says how the text is cut, the method (`bench/divergence.py`) how much of
the divergence is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench import statistics
from qdeploy.bench.fidelity.divergence import Divergence, intersection, two_pass
from qdeploy.bench.fidelity.kept_windows import KeptWindows
from qdeploy.bench.fidelity.token_statistics import perplexity, token_statistics
from qdeploy.bench.fidelity.token_table import TokenTable, concatenate, window_table
from qdeploy.bench.fidelity.windows import Documents, Windows
from qdeploy.bench.records import Estimate, Fidelity, Method
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.scores import Scores
from qdeploy.errors import ComparisonError
from qdeploy.progress import progress


def score_windows(
    endpoint: Endpoint,
    windows: Windows,
    top_k: int,
    concurrency: int,
    baseline: TokenTable | None = None,
    order: Sequence[int] | None = None,
    title: str = "Scoring text",
    kept: KeptWindows | None = None,
) -> TokenTable:
    """Score every window; each answer becomes arrays as it arrives, so that few are held as JSON.

    Args:
        baseline: its most likely tokens are scored as well, by their ids.
        order: in which windows are sent; the table is in the text's order all the same.
        kept: windows that were scored before and are not sent again; each new one is added.

    Raises:
        EndpointError: the endpoint fails, or returns no `top_k` prompt log-probabilities.
    """
    tables = kept.tables() if kept else {}
    wanted = range(len(windows.tokens)) if order is None else order
    pending = [window for window in wanted if window not in tables]
    chosen = _split(baseline) if baseline else None
    with progress(title, len(pending)) as bar:
        for first in range(0, len(pending), concurrency):
            block = pending[first : first + concurrency]

            def keep(index: int, scores: Scores, block: list[int] = block) -> None:
                window = block[index]
                tables[window] = window_table(window, scores, windows.start(window))
                if kept:
                    kept.add(window, tables[window])
                bar.advance()

            ids = [chosen[window] for window in block] if chosen else None
            endpoint.score_many([windows.tokens[window] for window in block], top_k, concurrency, keep, ids)
    table = concatenate([tables[i] for i in sorted(tables)])
    return replace(table, chosen_ids=baseline.top_ids) if baseline else table


def _split(table: TokenTable) -> list[NDArray[np.int32]]:
    """The top ids of each window."""
    return np.split(table.top_ids, np.flatnonzero(np.diff(table.window)) + 1)


def check_same_tokens(windows: Windows, baseline: TokenTable) -> None:
    """Refuse a baseline that scored something else.

    Raises:
        ComparisonError: other tokens, or the same ones cut otherwise.
    """
    sizes = [len(tokens) - windows.start(i) for i, tokens in enumerate(windows.tokens)]
    ours = np.repeat(np.arange(len(sizes)), sizes)
    if not np.array_equal(windows.scored, baseline.token) or not np.array_equal(ours, baseline.window):
        raise ComparisonError(
            f"The baseline's token table holds other tokens than the {len(ours)} of this run. "
            "Run the baseline again on the same text."
        )


def best_divergence(baseline: TokenTable, variant: TokenTable) -> tuple[Method, Divergence]:
    """The tightest bound that the variant's table allows, and its method."""
    if variant.chosen_ids is not None and np.array_equal(variant.chosen_ids, baseline.top_ids):
        return "two-pass", two_pass(baseline, variant)
    return "intersection", intersection(baseline, variant)


def summarize(windows: Windows, table: TokenTable, baseline: TokenTable | None) -> Fidelity:
    """The figures of a scored text, compared with the baseline's where there is one.

    Raises:
        ComparisonError: the baseline scored other tokens.
    """
    fidelity = Fidelity(
        text=windows.source,
        text_sha256=windows.text_sha256,
        protocol=windows.protocol,
        windows=len(windows.tokens),
        window_tokens=max(map(len, windows.tokens)),
        positions=len(table.token),
        top_k=table.top_k,
        method="none",
        perplexity=_exponential(_nll(table), table.clusters),
    )
    if windows.documents is not None:
        fidelity = fidelity.model_copy(update=_by_document(table, windows.documents))
    return fidelity if baseline is None else compare_tables(fidelity, table, baseline)


def compare_tables(fidelity: Fidelity, table: TokenTable, baseline: TokenTable) -> Fidelity:
    """`fidelity`, whose table is `table`, with all that follows from the baseline's.

    Raises:
        ComparisonError: the baseline scored other tokens.
    """
    if not np.array_equal(table.token, baseline.token) or not np.array_equal(table.window, baseline.window):
        raise ComparisonError(
            f"The baseline's token table holds other tokens than the {fidelity.positions} of this run. "
            "Run the baseline again on the same text."
        )
    clusters = table.clusters
    method, found = best_divergence(baseline, table)
    other = intersection(baseline, table).kl if method == "two-pass" else found.kl
    same = (table.top_ids[:, 0] == baseline.top_ids[:, 0]).astype(np.float64)
    return fidelity.model_copy(
        update={
            "method": method,
            "baseline_perplexity": _exponential(_nll(baseline), clusters),
            "perplexity_ratio": _exponential(_nll(table) - _nll(baseline), clusters),
            "kl_lower_bound": statistics.bootstrap_mean(found.kl, clusters),
            "kl_intersection": statistics.bootstrap_mean(other, clusters),
            "tail_mass": float(found.tail.mean()),
            "same_top_token": statistics.bootstrap_mean(same, clusters),
            "per_window_kl": (np.bincount(table.window, found.kl) / np.bincount(table.window)).tolist(),
            "tokens": token_statistics(baseline, table, found.kl, clusters),
        }
    )


def _nll(table: TokenTable) -> statistics.Array:
    """−ln p of the tokens of the text, float64 [P]."""
    return -table.logprob.astype(np.float64)


def _exponential(values: statistics.Array, clusters: list[str]) -> Estimate:
    """exp of the mean over tokens, with Student's t interval over windows taken before the exp."""
    return statistics.mean_interval(values, clusters).mapped(perplexity)


def _by_document(table: TokenTable, documents: Documents) -> dict[str, Estimate]:
    """lm-eval's perplexity per word and byte of the original text, with intervals over documents."""
    document = np.array(documents.of_window)[table.window]
    nll = np.bincount(document, _nll(table), len(documents.words)).astype(np.float64)
    word, byte = (_per_unit(nll, np.array(units, float)) for units in (documents.words, documents.bytes))
    return {
        "word_perplexity": word.mapped(perplexity),
        "byte_perplexity": byte.mapped(perplexity),
        "bits_per_byte": byte.mapped(lambda nats: nats / math.log(2)),
    }


def _per_unit(sums: statistics.Array, units: statistics.Array) -> Estimate:
    """Σ sums / Σ units with the linearized interval of a ratio, documents being independent."""
    rate = float(sums.sum() / units.sum())
    labels = [str(i) for i in range(len(sums))]
    moved = statistics.mean_interval((sums - rate * units) / units.mean(), labels)
    return moved.mapped(lambda step: rate + step)
