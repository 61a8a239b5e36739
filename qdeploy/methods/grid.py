"""Scales and zero points: fitted to the range of each group, or searched for the least rounding error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qdeploy.quantized import QuantizedLinear, portable_scales
from qdeploy.schemes import Scheme

WIDEST, NARROWEST, STEPS = 1.14, 0.6, 28
"""Shares of a group's range that a search tries. Above 1 because GPTQ moves weights beyond it."""


@dataclass(frozen=True)
class Grid:
    """The values that codes can take: s · (q − z).

    Attributes:
        scales: bfloat16 [N, G].
        zeros: uint8 [N, G], None for the symmetric grid.
        scheme: the number format.
    """

    scales: Tensor
    zeros: Tensor | None
    scheme: Scheme

    def offsets(self) -> Tensor:
        """Zero points as float32 [N, G]."""
        if self.zeros is None:
            return torch.full_like(self.scales, float(self.scheme.zero), dtype=torch.float32)
        return self.zeros.float()

    def nearest(self, weight: Tensor) -> QuantizedLinear:
        """Round each weight [N, K] to the nearest grid value."""
        codes = self.codes(_grouped(weight, self.scheme)).flatten(1).to(torch.uint8)
        return QuantizedLinear(codes, self.scales, self.zeros, self.scheme)

    def codes(self, groups: Tensor) -> Tensor:
        """Nearest codes of weights [N, G, K/G], as float32."""
        scaled = groups / self.scales.float().unsqueeze(-1)
        return scaled.round_().add_(self.offsets().unsqueeze(-1)).clamp_(0, self.scheme.qmax)


def _grouped(weight: Tensor, scheme: Scheme) -> Tensor:
    n, k = weight.shape
    return weight.reshape(n, scheme.groups(k), -1)


def fit(weight: Tensor, scheme: Scheme, share: float = 1.0) -> Grid:
    """The grid that spans `share` times the range of each group of `weight` [N, K].

    Symmetric: 2·max|w| over 2^b − 1 steps, as in the GPTQ reference and compressed-tensors. Asymmetric: the
    range widened to include 0, which is then exactly representable. Scales are rounded to the precision in
    which they are stored before anything is computed from them.
    """
    groups = _grouped(weight, scheme)
    if scheme.symmetric:
        return Grid(portable_scales(groups.abs().amax(-1) * (2 * share / scheme.qmax)), None, scheme)
    lo, hi = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scales = portable_scales((hi - lo) * (share / scheme.qmax))
    zeros = (-share * lo / scales.float()).round().clamp(0, scheme.qmax)
    return Grid(scales, zeros.to(torch.uint8), scheme)


def search(weight: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Grid:
    """The grid with the least squared rounding error by group: `fit`'s, or one of STEPS others.

    Args:
        weight: float32 [N, K].
        scheme: the number format.
        importance: float32 [K], weight of each column's error; None for all alike.
    """
    best = fit(weight, scheme)
    least = _error(best, weight, importance)
    for share in torch.linspace(WIDEST, NARROWEST, STEPS).tolist():
        grid = fit(weight, scheme, share)
        error = _error(grid, weight, importance)
        better = error < least
        least = torch.where(better, error, least)
        zeros = None
        if best.zeros is not None and grid.zeros is not None:
            zeros = torch.where(better, grid.zeros, best.zeros)
        best = Grid(torch.where(better, grid.scales, best.scales), zeros, scheme)
    return best


def _error(grid: Grid, weight: Tensor, importance: Tensor | None) -> Tensor:
    """Weighted squared error of rounding to nearest, by group: [N, G]."""
    groups = _grouped(weight, grid.scheme)
    rounded = grid.codes(groups).sub_(grid.offsets().unsqueeze(-1)).mul_(grid.scales.float().unsqueeze(-1))
    squares = rounded.sub_(groups).square_()
    if importance is not None:
        squares.mul_(importance.reshape(groups.shape[1:]))
    return squares.sum(-1)
