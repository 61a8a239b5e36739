"""What the mathematics of a checkpoint says about a token sequence, in this process.

Twice: in float32, which is the answer, and in the engine's 16-bit type, whose distance from the answer is the
noise that an engine computing in that type may show.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qdeploy.formats.dequantize import dequantized_model
from qdeploy.progress import progress

Array = NDArray[np.float64]
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class Reference:
    """Log-probabilities (nats) of tokens 1 … T−1 of each window, float64 [windows, T − 1].

    Attributes:
        exact: dequantized weights, float32 arithmetic.
        rounded: the same model in `dtype`.
    """

    exact: Array
    rounded: Array
    dtype: str


def compute_reference(folder: Path, windows: Sequence[Sequence[int]], dtype: torch.dtype) -> Reference:
    """Score `windows` with the dequantized model of `folder`, in float32 and in `dtype`.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    with progress("Reference", 2 * len(windows)) as task:

        def score(kind: torch.dtype) -> Array:
            task.note(_name(kind))
            model = dequantized_model(folder, kind)
            rows = []
            for window in windows:
                rows.append(token_logprobs(model, window))
                task.advance()
            return np.stack(rows)

        exact = score(torch.float32)
        # Two copies of the weights at once would be one too many.
        gc.collect()
        return Reference(exact, score(dtype), _name(dtype))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.inference_mode()
def token_logprobs(model: Any, window: Sequence[int]) -> Array:
    """ln p(token t | tokens before t) of tokens 1 … T−1, float64 [T − 1]."""
    ids = torch.tensor([list(window)])
    logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    chosen: Array = logprobs.gather(-1, ids[0, 1:, None])[:, 0].double().numpy()
    return chosen


def rms(values: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(values**2)))


def engine_dtype(config: dict[str, Any], arguments: Sequence[str]) -> torch.dtype:
    """The type that vLLM computes in: its `--dtype`, else the checkpoint's, 32-bit ones as bfloat16."""
    given = dict(pairwise(arguments)).get("--dtype", "auto")
    if given in DTYPES:
        return DTYPES[given]
    text = config.get("text_config") or {}
    named = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "bfloat16"
    return torch.float16 if named == "float16" else torch.bfloat16
