"""The hidden states of all calibration samples between two blocks, and how much of a block is kept alive."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qdeploy.errors import disk_errors
from qdeploy.memory import Budget

BATCH_TOKENS = 512
"""Tokens of a micro-batch. Forwards of SmolLM2-135M on 32 × 512 tokens took 25 s with 4096, 17 s with 512."""


class Activations:
    """Hidden states float32 [S, T, D], overwritten in place as they pass through the blocks.

    Args:
        shape: samples S, tokens T, width D.
        spill: folder on whose disk they are kept beyond the budget. The file has no name, so that it is gone
            when the process ends, however it ends.
        budget: what they may take.
        together: bytes of these and of others that the same budget is for; by default there are no others.

    Raises:
        OutputError: the disk is full.
    """

    def __init__(
        self, shape: tuple[int, int, int], spill: Path, budget: Budget, together: int | None = None
    ) -> None:
        self.shape, self.budget = shape, budget
        self._spill, self._together = spill, together or states_bytes(shape)
        self._states: Tensor | _SpilledStates
        if self._together <= budget.states:
            self._states = torch.empty(shape)
        else:
            self._states = _SpilledStates(shape, spill)

    def like(self, samples: int) -> Activations:
        """Others of that kind, for so many samples; they are kept where these are."""
        return Activations((samples, *self.shape[1:]), self._spill, self.budget, self._together)

    @property
    def resident_bytes(self) -> int:
        """RAM that they take."""
        return self._states.nbytes if isinstance(self._states, Tensor) else 0

    def __getitem__(self, samples: slice) -> Tensor:
        return self._states[samples]

    def __setitem__(self, samples: slice, states: Tensor) -> None:
        self._states[samples] = states

    def batches(self) -> Iterator[slice]:
        """Micro-batches of samples."""
        yield from micro_batches(*self.shape[:2])


class _SpilledStates:
    """The same in a file. Read and written, not mapped: pages of a mapping would count as memory in use."""

    def __init__(self, shape: tuple[int, int, int], folder: Path) -> None:
        self._shape, self._folder = shape, folder
        with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, states_bytes(shape))
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, samples: slice) -> Tensor:
        start, stop, _ = samples.indices(self._shape[0])
        states = torch.empty(max(0, stop - start), *self._shape[1:])
        if not len(states):
            return states  # no bytes can be seen of it
        view, offset = states.numpy().data.cast("B"), self._offset(start)
        while view:
            count = os.preadv(self._file, [view], offset)
            view, offset = view[count:], offset + count
        return states

    def __setitem__(self, samples: slice, states: Tensor) -> None:
        start, stop, _ = samples.indices(self._shape[0])
        wanted = states.cpu().expand(stop - start, *self._shape[1:]).contiguous()
        view, offset = wanted.numpy().data.cast("B"), self._offset(start)
        with disk_errors(self._folder):
            while view:
                count = os.pwrite(self._file, view, offset)
                view, offset = view[count:], offset + count

    def _offset(self, sample: int) -> int:
        return states_bytes((sample, *self._shape[1:]))


def states_bytes(shape: tuple[int, int, int]) -> int:
    """Bytes of hidden states float32 [S, T, D]."""
    samples, tokens, width = shape
    return 4 * samples * tokens * width


def micro_batches(samples: int, tokens: int) -> Iterator[slice]:
    """Slices of samples of `tokens` tokens each, about BATCH_TOKENS tokens together."""
    step = max(1, BATCH_TOKENS // tokens)
    for start in range(0, samples, step):
        yield slice(start, min(start + step, samples))


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one micro-batch takes inside a block.

    Attributes:
        running: bytes at its largest, while it runs.
        halted: bytes that stay alive where it halts before a layer.
    """

    running: int
    halted: int

    def halting(self, batches: int, room: int, solving: int) -> int:
        """How many of `batches` micro-batches may be halted in `room` bytes.

        While another one runs, and while a layer is solved, which takes `solving` bytes.
        """
        solved = solving + batches * self.halted
        if max(solved, self.together(batches, batches)) <= room:
            return batches
        return max(0, (room - max(self.running, solving)) // self.halted)

    def together(self, batches: int, halting: int) -> int:
        """Bytes of `halting` out of `batches` micro-batches; where all halt, the last of them runs."""
        return self.running + min(halting, batches - 1) * self.halted


def footprint(widths: Iterable[int], shape: tuple[int, int, int]) -> Footprint:
    """The footprint of the largest micro-batch of [S, T, D] in a block whose linears have these features.

    Halted: the hidden states and their descendants, such as queries, keys and values, and the widest layer's
    input. Running: an MLP's two branches and their product besides.
    """
    samples, tokens, width = shape
    widest = max(widths)
    batch = next(micro_batches(samples, tokens))
    in_batch = tokens * (batch.stop - batch.start)
    return Footprint(4 * in_batch * (4 * width + 3 * widest), 4 * in_batch * (4 * width + widest))
