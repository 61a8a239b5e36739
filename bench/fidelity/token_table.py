"""`tokens.parquet`: what a model predicted at every position of a text; all that a comparison needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qdeploy.engines.scores import Scores
from qdeploy.errors import ComparisonError

TOKENS = "tokens.parquet"
LISTS = ("top_ids", "top_logprobs", "chosen_ids", "chosen")
"""Columns with K values a row."""


@dataclass(frozen=True)
class TokenTable:
    """One row a predicted position, P in all, ordered by window.

    Attributes:
        window: int32 [P], which window.
        token: int32 [P], the token that is there.
        logprob: float32 [P], its log-probability, nats.
        top_ids: int32 [P, K], the K likeliest tokens, likeliest first.
        top_logprobs: float32 [P, K], theirs, nats.
        chosen_ids: int32 [P, K], the baseline's K likeliest tokens, which were scored too; None where the
            engine cannot score chosen tokens, or there is no baseline.
        chosen: float32 [P, K], theirs, nats.
    """

    window: NDArray[np.int32]
    token: NDArray[np.int32]
    logprob: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    chosen_ids: NDArray[np.int32] | None = None
    chosen: NDArray[np.float32] | None = None

    @property
    def top_k(self) -> int:
        """K."""
        return int(self.top_ids.shape[1])

    @property
    def clusters(self) -> list[str]:
        """The window of each position, as the label of its cluster."""
        return [str(window) for window in self.window]


def window_table(window: int, scores: Scores, start: int = 1) -> TokenTable:
    """The rows of one window from position `start` on; its first token, which nothing predicts, has none."""
    top = (scores.top or [])[start:]
    return TokenTable(
        window=np.full(len(scores.token_ids) - start, window, np.int32),
        token=np.array(scores.token_ids[start:], np.int32),
        logprob=np.array(scores.token_logprobs[start:], np.float32),
        top_ids=np.array([list(row) for row in top], np.int32),
        top_logprobs=np.array([list(row.values()) for row in top], np.float32),
        chosen=scores.chosen,
    )


def concatenate(tables: Sequence[TokenTable]) -> TokenTable:
    """The rows of several windows as one table."""
    chosen = [t.chosen for t in tables if t.chosen is not None]
    return TokenTable(
        window=np.concatenate([t.window for t in tables]),
        token=np.concatenate([t.token for t in tables]),
        logprob=np.concatenate([t.logprob for t in tables]),
        top_ids=np.concatenate([t.top_ids for t in tables]),
        top_logprobs=np.concatenate([t.top_logprobs for t in tables]),
        chosen=np.concatenate(chosen) if chosen else None,
    )


def write_tokens(path: Path, table: TokenTable) -> None:
    """Write all rows."""
    columns = {"window": pa.array(table.window), "token": pa.array(table.token)}
    columns["logprob"] = pa.array(table.logprob)
    for name in LISTS:
        if (values := getattr(table, name)) is not None:
            columns[name] = pa.FixedSizeListArray.from_arrays(values.ravel(), table.top_k)
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_tokens(folder: Path, file: str = TOKENS) -> TokenTable:
    """The rows of a run folder.

    Raises:
        ComparisonError: the run measured no fidelity, or the file is broken.
    """
    path = folder / file
    try:
        table = pq.read_table(path).combine_chunks()
        rows = len(table)
        lists = {
            name: table[name].combine_chunks().flatten().to_numpy().reshape(rows, -1)
            for name in LISTS
            if name in table.column_names
        }
        flat = {name: table[name].to_numpy() for name in ("window", "token", "logprob")}
        return TokenTable(**flat, **lists)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ComparisonError(f"{path} is missing or broken: {error}. Run the baseline again.") from error
