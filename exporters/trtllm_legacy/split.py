"""Which part of a model each device has: stages of whole layers, each split over as many devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Split:
    """A model over `tensor_parallel` × `pipeline_parallel` devices."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.tensor_parallel * self.pipeline_parallel

    def ranks(self) -> Iterator[Rank]:
        """All devices in order: those of the first stage first."""
        return (Rank(self, index) for index in range(self.devices))


@dataclass(frozen=True, slots=True)
class Rank:
    """One device.

    Attributes:
        split: of the model.
        index: of the device, as in the name of its file.
    """

    split: Split
    index: int

    @property
    def part(self) -> int:
        """Which part of each layer it has."""
        return self.index % self.split.tensor_parallel

    @property
    def stage(self) -> int:
        """Which layers it has."""
        return self.index // self.split.tensor_parallel

    @property
    def first(self) -> bool:
        """Whether it has the embedding."""
        return self.stage == 0

    @property
    def last(self) -> bool:
        """Whether it has the last norm and the head."""
        return self.stage == self.split.pipeline_parallel - 1

    def layers(self, count: int) -> range:
        """Its layers out of `count`, which the stages divide."""
        each = count // self.split.pipeline_parallel
        return range(self.stage * each, (self.stage + 1) * each)

    def share(self, size: int) -> slice:
        """Its part of `size` rows or columns, which the devices divide."""
        return _part(size, self.part, self.split.tensor_parallel)

    def share_of_heads(self, rows: int, heads: int) -> slice:
        """Its part of the rows of key or value heads; neighbours have the same where heads are too few."""
        devices = self.split.tensor_parallel
        if heads >= devices:
            return self.share(rows)
        return _part(rows, self.part * heads // devices, heads)

    def share_of_vocabulary(self, matrix: Tensor) -> Tensor:
        """Its rows of an embedding or a head [V, H]: [ceil(V / devices), H], zeros beyond the vocabulary."""
        devices = self.split.tensor_parallel
        size = -(-matrix.shape[0] // devices)
        rows = matrix[self.part * size : (self.part + 1) * size]
        return torch.nn.functional.pad(rows, (0, 0, 0, size - rows.shape[0]))


def _part(size: int, index: int, parts: int) -> slice:
    each = size // parts
    return slice(index * each, (index + 1) * each)
