"""What a layer computes that no engine runs as it is: a 16-bit weight, for studies of accuracy alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

LARGEST = 65280.0
"""The largest number that bfloat16 and float16 share."""


@dataclass(frozen=True, slots=True)
class ReferenceLinear:
    """A weight matrix [N, K] as a method made it, dequantized.

    Attributes:
        weight: bfloat16 [N, K], exact in float16 and float32 too; see `portable`.
        bits: of storage that a weight would take, on average, scales and all.
    """

    weight: Tensor
    bits: float

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        n, k = self.weight.shape
        return n, k

    def dequantize(self) -> Tensor:
        """The float32 weight [N, K]."""
        return self.weight.float()

    def row_sizes(self) -> Tensor:
        """The magnitude of each row, float32 [N]."""
        return self.weight.float().abs().amax(1)

    def divided_by(self, s: Tensor) -> ReferenceLinear:
        """The layer with its rows divided by powers of two s [N]."""
        return replace(self, weight=portable(self.weight.float() / s.unsqueeze(1)))


def portable(weight: Tensor) -> Tensor:
    """Round a float32 weight so that no later cast can change it: to what bfloat16 and float16 both hold."""
    return weight.clamp(-LARGEST, LARGEST).bfloat16().to(torch.float16).bfloat16()
