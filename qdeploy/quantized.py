"""The pivot: the one value in which every integer method ends and from which every format is packed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qdeploy.schemes import Scheme

SMALLEST_SCALE = 2.0**-17
"""Scales at or above this and rounded to bfloat16 are exact in bfloat16, float16 and float32 alike."""


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """One quantized weight matrix [N, K] in G groups along K.

    Attributes:
        codes: uint8 [N, K], 0 … scheme.qmax.
        scales: bfloat16 [N, G], finite, ≥ SMALLEST_SCALE.
        zeros: uint8 [N, G], or None for the symmetric grid.
        scheme: the number format.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    scheme: Scheme

    def dequantize(self) -> Tensor:
        """The float32 weight [N, K] that these codes stand for: s · (q − z)."""
        n, k = self.codes.shape
        grouped = self.codes.reshape(n, self.scales.shape[1], -1).float()
        zeros = self.scheme.zero if self.zeros is None else self.zeros.float().unsqueeze(-1)
        return ((grouped - zeros) * self.scales.float().unsqueeze(-1)).reshape(n, k)

    def divided_by(self, s: Tensor) -> QuantizedLinear:
        """The layer with its rows divided by powers of two s [N]; exact."""
        return replace(self, scales=(self.scales.float() / s.unsqueeze(1)).to(self.scales.dtype))


def portable_scales(scales: Tensor) -> Tensor:
    """Round scales so that no later cast can change them: bfloat16, at least SMALLEST_SCALE."""
    return scales.clamp_min(SMALLEST_SCALE).to(torch.bfloat16)
