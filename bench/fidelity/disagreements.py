"""Where a variant departs furthest from the baseline: the largest divergences in their context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qdeploy.bench.fidelity.token_table import TokenTable
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.bench.records import Candidate, Disagreement
from qdeploy.bench.statistics import Array

WORST, CONTEXT, CANDIDATES = 10, 24, 5
"""Positions kept; tokens of context before each; likeliest tokens of each model."""


def disagreements(
    windows: Windows, baseline: TokenTable, variant: TokenTable, kl: Array, tokenizer: Any
) -> list[Disagreement]:
    """The WORST positions by `kl` float64 [P], largest first, with what either model expected there."""
    places = _places(windows)
    return [
        Disagreement(
            window=places[row][0],
            position=places[row][1],
            kl=float(kl[row]),
            context=tokenizer.decode(_before(windows, *places[row])),
            token=tokenizer.decode([int(variant.token[row])]),
            p_baseline=float(np.exp(baseline.logprob[row])),
            p_variant=float(np.exp(variant.logprob[row])),
            baseline=_candidates(baseline, row, tokenizer),
            variant=_candidates(variant, row, tokenizer),
        )
        for row in np.argsort(-kl, kind="stable")[:WORST]
    ]


def _places(windows: Windows) -> Sequence[tuple[int, int]]:
    """(window, position in it) of every scored token."""
    return [
        (index, position)
        for index, tokens in enumerate(windows.tokens)
        for position in range(windows.start(index), len(tokens))
    ]


def _before(windows: Windows, window: int, position: int) -> list[int]:
    return windows.tokens[window][max(position - CONTEXT, 0) : position]


def _candidates(table: TokenTable, row: int, tokenizer: Any) -> list[Candidate]:
    pairs = zip(table.top_ids[row], table.top_logprobs[row], strict=True)
    likeliest = list(pairs)[:CANDIDATES]
    return [Candidate(token=tokenizer.decode([int(i)]), p=float(np.exp(logprob))) for i, logprob in likeliest]
