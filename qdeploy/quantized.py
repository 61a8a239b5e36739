"""The pivot: the one value in which every method ends and from which every format is packed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from qdeploy import levels
from qdeploy.formats import bits
from qdeploy.schemes import Scheme

SMALLEST_SCALE = 2.0**-17
"""Scales at or above this and rounded to bfloat16 are exact in bfloat16, float16 and float32 alike."""


@dataclass(frozen=True)
class QuantizedLinear:
    """One quantized weight matrix [N, K] in G groups along K, of which the last may be narrower.

    Attributes:
        stored: the codes, 0 … scheme.qmax, uint8 [N, K]; or, where they fill whole words, as `bits.pack` lays
            them along rows, int32 [N, K·b/32]. Formats that differ in the order of words need no codes.
        scales: bfloat16 [N, G], finite, positive, exact in what the scheme stores them in; equal for rows
            that share them.
        zeros: uint8 [N, G], or None for the symmetric grid and for minifloats.
        scheme: the number format.
        divisor: float32 [], what E4M3 scales, or weights that are in E4M3 before the product, are divided by;
            None for others.
        input_scale: float32 [], the static scale of the layer's inputs; None where there is none.
        column_groups: int32 [K], the group of each column, as GPTQ's act-order may leave it and no format is
            written from; None where groups are runs of columns.
    """

    stored: Tensor
    scales: Tensor
    zeros: Tensor | None
    scheme: Scheme
    divisor: Tensor | None = None
    input_scale: Tensor | None = None
    column_groups: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        n, columns = self.stored.shape
        return n, columns if self.stored.dtype == torch.uint8 else columns * 32 // self.scheme.bits

    @cached_property
    def codes(self) -> Tensor:
        """uint8 [N, K]."""
        if self.stored.dtype == torch.uint8:
            return self.stored
        return bits.unpack(self.stored, self.scheme.bits, self.shape[1])

    @property
    def stream(self) -> Tensor:
        """The codes of each row as one stream of bits, int32 [N, ceil(K·b/32)]."""
        return bits.pack(self.stored, self.scheme.bits) if self.stored.dtype == torch.uint8 else self.stored

    @property
    def bits(self) -> float:
        """Of storage that a weight takes, on average, with scales and zero points."""
        n, k = self.shape
        scales = 16 if self.scheme.steps == "bfloat16" else 8
        zeros = 0 if self.zeros is None else self.scheme.bits
        rows = n if self.scheme.rows is None else self.scheme.rows
        # Integers with rounded activations take a byte each, those of 4 bits too.
        bytewise = self.scheme.element is None and self.scheme.activations is not None
        return (8 if bytewise else self.scheme.bits) + (scales / rows + zeros) * self.scales.shape[1] / k

    @property
    def steps(self) -> Tensor:
        """What one level is worth, float32 [N, G]."""
        return effective(self.scales, self.divisor if self.scheme.steps == "e4m3" else None)

    def dequantize(self) -> Tensor:
        """The float32 weight [N, K] that these codes stand for: a step times each code's level."""
        if self.column_groups is not None:
            return self._dequantize_by_column(self.column_groups.long())
        n, k = self.codes.shape
        padding = -k % (self.scheme.group_size or k)
        grouped = nn.functional.pad(self.codes, (0, padding)).reshape(n, self.scales.shape[1], -1)
        zeros = self.scheme.zero if self.zeros is None else self.zeros.float().unsqueeze(-1)
        weight = levels.decode(grouped, zeros, self.scheme) * self.steps.unsqueeze(-1)
        if self.scheme.product is not None and self.divisor is not None:
            weight = levels.nearest_float(weight * self.divisor, self.scheme.product) / self.divisor
        return weight.reshape(n, k + padding)[:, :k].contiguous()

    def _dequantize_by_column(self, groups: Tensor) -> Tensor:
        zeros = self.scheme.zero if self.zeros is None else self.zeros.float()[:, groups]
        return levels.decode(self.codes, zeros, self.scheme) * self.steps[:, groups]

    def row_sizes(self) -> Tensor:
        """The magnitude of each row, float32 [N]: that of its smallest step."""
        return self.steps.amin(1)

    def divided_by(self, s: Tensor) -> QuantizedLinear:
        """The layer with its rows divided by powers of two s [N]; exact where each row has its own scales."""
        return replace(self, scales=(self.scales.float() / s.unsqueeze(1)).to(self.scales.dtype))


def effective(scales: Tensor, divisor: Tensor | None) -> Tensor:
    """Steps, float32, from stored scales and what they are divided by."""
    return scales.float() if divisor is None else scales.float() / divisor


def portable_scales(scales: Tensor) -> Tensor:
    """Round scales so that no later cast can change them: bfloat16, at least SMALLEST_SCALE."""
    return scales.clamp_min(SMALLEST_SCALE).to(torch.bfloat16)
