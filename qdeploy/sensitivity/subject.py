"""The 16-bit model on the calibration text: its hidden states before every block and after the last.

Both scores start from them, block by block, so that no more than one block has its weights in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeploy.memory import Budget
from qdeploy.modeling.activations import Activations, micro_batches, states_bytes
from qdeploy.modeling.blocks import Block
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.inputs import BlockCall, enter
from qdeploy.modeling.skeleton import materialized
from qdeploy.progress import Task
from qdeploy.schemes import Scheme
from qdeploy.sensitivity.units import Unit


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        reader: the 16-bit checkpoint.
        model: its skeleton.
        blocks: its decoder blocks.
        units: what is decided for.
        schemes: unit → what it is tried in, without 16 bit.
        tokens: int64 [S + F, T]. Harm is measured on the first S samples; the others are for Hessians.
        scored: S.
        rounder: config of the method that rounds.
        device: where blocks run.
        limits: what hidden states may take of the RAM.
        spill: folder on whose disk they are kept beyond that.
        exact: multiply in float32, though bfloat16 may be faster.
    """

    reader: CheckpointReader
    model: Any
    blocks: Sequence[Block]
    units: Sequence[Unit]
    schemes: Mapping[str, Sequence[Scheme]]
    tokens: Tensor
    scored: int
    rounder: Any
    device: torch.device
    limits: Budget
    spill: Path
    exact: bool = False

    @property
    def trials(self) -> list[tuple[Unit, Scheme]]:
        """Every unit in every scheme that it is tried in."""
        return [(unit, scheme) for unit in self.units for scheme in self.schemes[unit.name]]

    def materialized(self, block: Block) -> AbstractContextManager[None]:
        """The block with its weights, for the time of a `with`."""
        return materialized(self.model, block, self.reader, self.device, fast=not self.exact)

    def inside(self, block: Block) -> list[Unit]:
        """The units of a block."""
        return [unit for unit in self.units if unit.block == block.name]


class Recorded:
    """Hidden states float32 of the 16-bit model.

    Args:
        states: [(L + 1) · (S + F), T, D]: those before block i are number i of L + 1.
    """

    def __init__(self, subject: Subject, calls: Sequence[BlockCall], states: Activations) -> None:
        self.subject, self.calls = subject, calls
        self._states, self.samples = states, subject.scored
        self._all = len(subject.tokens)

    def before(self, block: int, samples: slice) -> Tensor:
        """[B, T, D] that enter the block of that number; what leaves the last one enters number L."""
        return self._states[self._place(block, samples)]

    def put(self, block: int, samples: slice, states: Tensor) -> None:
        """Set what enters a block."""
        self._states[self._place(block, samples)] = states

    def batches(self) -> Iterator[slice]:
        """Micro-batches of the samples that harm is measured on."""
        yield from micro_batches(self.samples, self.subject.tokens.shape[1])

    def fitted(self) -> Iterator[slice]:
        """Micro-batches of the others."""
        for batch in micro_batches(self._all - self.samples, self.subject.tokens.shape[1]):
            yield slice(self.samples + batch.start, self.samples + batch.stop)

    def like(self, copies: int) -> Activations:
        """Room for so many times the hidden states of the S samples between two blocks."""
        return self._states.like(copies * self.samples)

    def _place(self, block: int, samples: slice) -> slice:
        return slice(block * self._all + samples.start, block * self._all + samples.stop)


@torch.no_grad()
def record(subject: Subject, task: Task, *, copies: int = 0) -> Recorded:
    """Run the 16-bit model; a step of `task` for each block.

    Args:
        copies: how many times the states between two blocks will be kept beside these.

    Raises:
        CheckpointError: a weight is not finite, or the blocks do not form a plain stack.
        OutputError: the disk is full.
    """
    blocks, device = subject.blocks, subject.device
    calls, first = enter(
        subject.model, blocks, subject.tokens, subject.reader, device, subject.spill, subject.limits
    )
    samples, length, width = first.shape
    shape = ((len(blocks) + 1) * samples, length, width)
    together = states_bytes(shape) + copies * states_bytes((subject.scored, length, width))
    recorded = Recorded(subject, calls, Activations(shape, subject.spill, subject.limits, together))
    for batch in first.batches():
        recorded.put(0, batch, first[batch])
    for i, call in enumerate(calls):
        with subject.materialized(call.block):
            for batch in first.batches():
                recorded.put(i + 1, batch, call(recorded.before(i, batch).to(device)).cpu())
        task.advance()
    return recorded
