"""What a choice for a unit takes: bits of its weights, and bytes of the checkpoint's files.

Bits are those of codes, scales and zero points; layers in 16 bit count as they are stored. Bytes are all that
the files hold for the unit: these, the shape that is stored beside them, and a safetensors header's entry for
each tensor, for which HEADER_ENTRY is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from qdeploy.estimate import packed_bytes
from qdeploy.formats.ct_layout import PACKED, storage_format
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.sensitivity.candidates import Choice
from qdeploy.sensitivity.units import Unit

STORED_SHAPE = 16
"""Bytes of the int64 pair (N, K) beside packed codes."""

HEADER_ENTRY = 112
"""Bytes of a header's entry beside the tensor's name: dtype, shape, two offsets, punctuation; see tests."""

TENSORS = 4
"""The most tensors of a quantized layer: codes, scales, zero points, shape; its bias is there either way."""

Cost = Callable[[Unit, Choice], int]


class Sizes:
    """Bits and bytes of every choice for a checkpoint.

    Args:
        reader: the 16-bit checkpoint.
        units: those of its model.
    """

    def __init__(self, reader: CheckpointReader, units: Sequence[Unit]) -> None:
        self._reader = reader
        self.weights = sum(unit.weights for unit in units)
        inside = {f"{name}.weight" for unit in units for name in unit.layers}
        self.rest = sum(self._tensor_bytes(name) for name in reader.names if name not in inside)

    def bits(self, unit: Unit, choice: Choice) -> int:
        """Bits of codes, scales and zero points."""
        if choice is None:
            return 8 * sum(self._plain_bytes(f"{name}.weight") for name in unit.layers)
        shape = STORED_SHAPE if storage_format(choice) == PACKED else 0
        return 8 * sum(packed_bytes(size, choice) - shape for size in unit.layers.values())

    def bytes(self, unit: Unit, choice: Choice) -> int:
        """Bytes in the weight files."""
        if choice is None:
            return sum(self._tensor_bytes(f"{name}.weight") for name in unit.layers)
        return sum(
            packed_bytes(shape, choice) + TENSORS * (HEADER_ENTRY + len(f"{name}.weight_zero_point"))
            for name, shape in unit.layers.items()
        )

    def _plain_bytes(self, tensor: str) -> int:
        return math.prod(self._reader.shape(tensor)) * self._reader.dtype(tensor).itemsize

    def _tensor_bytes(self, tensor: str) -> int:
        return self._plain_bytes(tensor) + HEADER_ENTRY + len(tensor)
