"""Scales and zero points: fitted to the range of each group, or searched for the least rounding error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qdeploy.methods import kernels
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


def fit(weight: Tensor, scheme: Scheme) -> Grid:
    """The grid that spans the range of each group of `weight` [N, K].

    Symmetric: 2·max|w| over 2^b − 1 steps, as in the GPTQ reference and compressed-tensors. Asymmetric: the
    range widened to include 0, which is then exactly representable. Scales are rounded to the precision in
    which they are stored before anything is computed from them.
    """
    scales, zeros = _spanning(weight, scheme, torch.ones(1, device=weight.device))
    return _grid(scales[0], zeros[0], scheme)


def search(weight: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Grid:
    """The grid with the least squared rounding error by group: `fit`'s, or one of STEPS others.

    Args:
        weight: float32 [N, K].
        scheme: the number format.
        importance: float32 [K], weight of each column's error; None for all alike.
    """
    shares = torch.cat([torch.ones(1), torch.linspace(WIDEST, NARROWEST, STEPS)]).to(weight.device)
    scales, zeros = _spanning(weight, scheme, shares)
    if importance is None:
        importance = torch.ones_like(weight[0])
    if kernels.fit_for(weight):
        best = torch.zeros(scales.shape[1:], dtype=torch.int64)
        arrays = [tensor.contiguous().numpy() for tensor in (weight, importance, scales, zeros)]
        kernels.over_rows(kernels.search_rows, len(weight), *arrays, scheme.qmax, best.numpy())
    else:
        best = least_errors(weight, importance, scales, zeros, scheme.qmax)
    chosen = best.unsqueeze(0)
    return _grid(scales.gather(0, chosen)[0], zeros.gather(0, chosen)[0], scheme)


def _spanning(weight: Tensor, scheme: Scheme, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zeros, float32 [C, N, G], that span these shares [C] of each group's range."""
    groups, share = _grouped(weight, scheme), shares[:, None, None]
    if scheme.symmetric:
        scales = portable_scales(groups.abs().amax(-1) * (2 * share / scheme.qmax)).float()
        return scales, torch.full_like(scales, float(scheme.zero))
    lo, hi = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scales = portable_scales((hi - lo) * (share / scheme.qmax)).float()
    return scales, (-share * lo / scales).round().clamp(0, scheme.qmax)


def _grid(scales: Tensor, zeros: Tensor, scheme: Scheme) -> Grid:
    return Grid(scales.to(torch.bfloat16), None if scheme.symmetric else zeros.to(torch.uint8), scheme)


def least_errors(weight: Tensor, importance: Tensor, scales: Tensor, zeros: Tensor, qmax: int) -> Tensor:
    """Which candidate is best, int64 [N, G], for a GPU; arguments as those of `kernels.search_rows`."""
    groups = weight.reshape(*scales.shape[1:], -1)
    cost, errors = importance.reshape(groups.shape[1:]), []
    for s, z in zip(scales.unsqueeze(-1), zeros.unsqueeze(-1), strict=True):
        rounded = (groups / s).round_().add_(z).clamp_(0, qmax).sub_(z).mul_(s)
        errors.append(rounded.sub_(groups).square_().mul_(cost).sum(-1))
    return torch.stack(errors).argmin(0)
