"""The hidden states of all calibration samples between two blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

MEMORY_SHARE = 0.25
"""Hidden states that need more than this share of the free memory are kept in a file."""

BATCH_TOKENS = 4096
"""Tokens of a micro-batch: enough for fast matrix products, few enough for an MLP's intermediate."""


class Activations:
    """Hidden states float32 [S, T, D], overwritten in place as they pass through the blocks.

    Args:
        shape: samples S, tokens T, width D.
        spill: folder on whose disk they are kept if memory is short. The file has no name, so that it is gone
            when the process ends, however it ends.
    """

    def __init__(self, shape: tuple[int, int, int], spill: Path) -> None:
        if 4 * np.prod(shape, dtype=np.int64) <= MEMORY_SHARE * psutil.virtual_memory().available:
            self._states = torch.empty(shape)
        else:
            with tempfile.TemporaryFile(dir=spill) as file:
                self._states = torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))

    @property
    def shape(self) -> tuple[int, int, int]:
        """S, T, D."""
        samples, tokens, width = self._states.shape
        return samples, tokens, width

    def __getitem__(self, samples: slice) -> Tensor:
        return self._states[samples]

    def __setitem__(self, samples: slice, states: Tensor) -> None:
        self._states[samples] = states

    def batches(self) -> Iterator[slice]:
        """Micro-batches of samples."""
        yield from micro_batches(*self.shape[:2])


def micro_batches(samples: int, tokens: int) -> Iterator[slice]:
    """Slices of samples of `tokens` tokens each, about BATCH_TOKENS tokens together."""
    step = max(1, BATCH_TOKENS // tokens)
    for start in range(0, samples, step):
        yield slice(start, min(start + step, samples))
