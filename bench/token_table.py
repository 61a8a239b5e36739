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


@dataclass(frozen=True)
class TokenTable:
    """One row a predicted position, P in all, ordered by window.

    Attributes:
        window: int32 [P], which window.
        token: int32 [P], the token that is there.
        logprob: float32 [P], its log-probability, nats.
        top_ids: int32 [P, K], the K likeliest tokens, likeliest first.
        top_logprobs: float32 [P, K], theirs, nats.
    """

    window: NDArray[np.int32]
    token: NDArray[np.int32]
    logprob: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    @property
    def top_k(self) -> int:
        """K."""
        return int(self.top_ids.shape[1])

    @property
    def clusters(self) -> list[str]:
        """The window of each position, as the label of its cluster."""
        return [str(window) for window in self.window]


def window_table(window: int, scores: Scores) -> TokenTable:
    """The rows of one window; its first token, which nothing predicts, has none."""
    top = (scores.top or [])[1:]
    return TokenTable(
        window=np.full(len(scores.token_ids) - 1, window, np.int32),
        token=np.array(scores.token_ids[1:], np.int32),
        logprob=np.array(scores.token_logprobs[1:], np.float32),
        top_ids=np.array([list(row) for row in top], np.int32),
        top_logprobs=np.array([list(row.values()) for row in top], np.float32),
    )


def concatenate(tables: Sequence[TokenTable]) -> TokenTable:
    """The rows of several windows as one table."""
    return TokenTable(
        window=np.concatenate([t.window for t in tables]),
        token=np.concatenate([t.token for t in tables]),
        logprob=np.concatenate([t.logprob for t in tables]),
        top_ids=np.concatenate([t.top_ids for t in tables]),
        top_logprobs=np.concatenate([t.top_logprobs for t in tables]),
    )


def write_tokens(path: Path, table: TokenTable) -> None:
    """Write all rows."""
    columns = {
        "window": pa.array(table.window),
        "token": pa.array(table.token),
        "logprob": pa.array(table.logprob),
        "top_ids": pa.FixedSizeListArray.from_arrays(table.top_ids.ravel(), table.top_k),
        "top_logprobs": pa.FixedSizeListArray.from_arrays(table.top_logprobs.ravel(), table.top_k),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_tokens(folder: Path) -> TokenTable:
    """The rows of a run folder.

    Raises:
        ComparisonError: the run measured no fidelity, or the file is broken.
    """
    path = folder / "tokens.parquet"
    try:
        table = pq.read_table(path).combine_chunks()
        rows = len(table)
        lists = {name: table[name].combine_chunks().flatten() for name in ("top_ids", "top_logprobs")}
        return TokenTable(
            window=table["window"].to_numpy(),
            token=table["token"].to_numpy(),
            logprob=table["logprob"].to_numpy(),
            top_ids=lists["top_ids"].to_numpy().reshape(rows, -1),
            top_logprobs=lists["top_logprobs"].to_numpy().reshape(rows, -1),
        )
    except (OSError, KeyError, ValueError) as error:
        raise ComparisonError(f"{path} is missing or broken: {error}. Run the baseline again.") from error
