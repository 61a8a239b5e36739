"""A checkpoint folder as rules look at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qdeploy.exporters.layers import Layer, read_layers
from qdeploy.formats.format import Block
from qdeploy.formats.packed import Packed, block_of
from qdeploy.modeling.checkpoint import CheckpointReader


@dataclass(frozen=True)
class Subject:
    """What rules look at.

    Attributes:
        packed: the folder's quantized layers.
        layers: every linear layer of the model, as its own code has them.
    """

    packed: Packed
    layers: list[Layer]

    @classmethod
    def open(cls, folder: Path) -> Subject:
        """The folder, from its headers and config.

        Raises:
            CheckpointError: it cannot be read, or is of no architecture that is known.
        """
        reader = CheckpointReader(folder)
        return cls(Packed(reader), read_layers(reader))

    @property
    def reader(self) -> CheckpointReader:
        return self.packed.reader

    @property
    def format(self) -> str | None:
        """Name of the format; None for a model in 16 bits."""
        return self.packed.format.name if self.packed.format else None

    @property
    def block(self) -> Block:
        """What describes the quantization; empty for a model in 16 bits."""
        return block_of(self.reader) or {}

    def holds(self, layer: Layer) -> bool:
        """Whether the folder has any tensor of the layer."""
        return layer.name in self._modules

    @cached_property
    def _modules(self) -> set[str]:
        return {name.rpartition(".")[0] for name in self.reader.names}

    def quantized(self) -> Iterator[Layer]:
        """Layers with a scheme."""
        return (layer for layer in self.layers if layer.scheme is not None)
