"""Scales and zero points: fitted to the range of each group, or searched for the least rounding error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qdeploy import levels
from qdeploy.methods import kernels
from qdeploy.quantized import SMALLEST_SCALE, QuantizedLinear, effective, portable_scales
from qdeploy.schemes import E4M3, Scheme

WIDEST, NARROWEST, STEPS = 1.14, 0.6, 28
"""Shares of a group's range that a search tries. Above 1 because GPTQ moves weights beyond it."""


@dataclass(frozen=True)
class Grid:
    """The values that codes can take: steps times levels.

    Attributes:
        scales: bfloat16 [N, G].
        zeros: uint8 [N, G], None for the symmetric grid and minifloats.
        scheme: the number format.
        divisor: see `QuantizedLinear`.
    """

    scales: Tensor
    zeros: Tensor | None
    scheme: Scheme
    divisor: Tensor | None = None

    def steps(self) -> Tensor:
        """What one level is worth, float32 [N, G]."""
        return effective(self.scales, self.divisor)

    def offsets(self) -> Tensor:
        """Zero points as float32 [N, G]; of minifloats 0."""
        if self.zeros is None:
            middle = 0.0 if self.scheme.element else float(self.scheme.zero)
            return torch.full_like(self.scales, middle, dtype=torch.float32)
        return self.zeros.float()

    def encode(self, found: Tensor) -> Tensor:
        """The codes, uint8 [N, K], of levels float32 [N, K]."""
        zeros = self.offsets().unsqueeze(-1)
        return levels.encode(_grouped(found, self.scheme), zeros, self.scheme).flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        """The levels, float32 [N, K], of codes uint8 [N, K]."""
        zeros = self.offsets().unsqueeze(-1)
        return levels.decode(_grouped(codes, self.scheme), zeros, self.scheme).flatten(1)

    def nearest(self, weight: Tensor) -> QuantizedLinear:
        """Round each weight [N, K] to the nearest grid value."""
        zeros = self.offsets().unsqueeze(-1)
        groups = _grouped(weight, self.scheme) / self.steps().unsqueeze(-1)
        codes = levels.encode(levels.nearest(groups, zeros, self.scheme), zeros, self.scheme)
        return self.quantized(codes.flatten(1))

    def quantized(self, codes: Tensor) -> QuantizedLinear:
        """The layer of these codes, uint8 [N, K]."""
        return QuantizedLinear(codes, self.scales, self.zeros, self.scheme, self.divisor)

    def replaced(self, rows: Tensor, other: Grid) -> Grid:
        """Another grid's scales and zeros in some rows, bool [N]."""
        chosen = rows.unsqueeze(1)
        zeros = (
            None
            if self.zeros is None or other.zeros is None
            else torch.where(chosen, other.zeros, self.zeros)
        )
        return replace(self, scales=torch.where(chosen, other.scales, self.scales), zeros=zeros)


def _grouped(weight: Tensor, scheme: Scheme) -> Tensor:
    n, k = weight.shape
    return weight.reshape(n, scheme.groups(k), -1)


def fit(weight: Tensor, scheme: Scheme, largest: float | None = None) -> Grid:
    """The grid that spans the range of each group of `weight` [N, K].

    Symmetric: 2·max|w| over 2^b − 1 steps, as in the GPTQ reference and compressed-tensors. Asymmetric: the
    range widened to include 0, which is then exactly representable. Minifloats: max|w| over their largest.
    Scales are rounded to the precision in which they are stored before anything is computed from them.

    Args:
        weight: float32 [N, K].
        scheme: the number format.
        largest: weight of all layers that engines run as one; None if there are no others.
    """
    divisor = _divisor(weight, scheme, largest)
    scales, zeros = _spanning(weight, scheme, torch.ones(1, device=weight.device), largest, divisor)
    return _grid(scales[0], zeros[0], scheme, divisor)


def search(
    weight: Tensor, scheme: Scheme, importance: Tensor | None = None, largest: float | None = None
) -> Grid:
    """The grid with the least squared rounding error by group: `fit`'s, or one of STEPS others.

    A step that all of a layer shares, with others beside it, is not searched.

    Args:
        weight: float32 [N, K].
        scheme: the number format.
        importance: float32 [K], weight of each column's error; None for all alike.
        largest: as of `fit`.
    """
    if scheme.rows is None:
        return fit(weight, scheme, largest)
    shares = torch.cat([torch.ones(1), torch.linspace(WIDEST, NARROWEST, STEPS)]).to(weight.device)
    divisor = _divisor(weight, scheme, largest)
    scales, zeros = _spanning(weight, scheme, shares, largest, divisor)
    if importance is None:
        importance = torch.ones_like(weight[0])
    if scheme.rows == 1 and kernels.fit_for(weight):
        best, kind = torch.zeros(scales.shape[1:], dtype=torch.int64), kernels.Levels.of(scheme).arguments
        tensors = (weight, importance, effective(scales, divisor), zeros)
        arrays = [tensor.contiguous().numpy() for tensor in tensors]
        kernels.over_rows(kernels.search_rows, len(weight), *arrays, *kind, best.numpy())
    else:
        best = least_errors(weight, importance, effective(scales, divisor), zeros, scheme)
    chosen = best.unsqueeze(0)
    return _grid(scales.gather(0, chosen)[0], zeros.gather(0, chosen)[0], scheme, divisor)


def _spanning(
    weight: Tensor, scheme: Scheme, shares: Tensor, largest: float | None, divisor: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scales and zeros, float32 [C, N, G], that span these shares [C] of each group's range."""
    groups, share = _grouped(weight, scheme), shares[:, None, None]
    if scheme.symmetric:
        sizes = by_shared_rows(groups.abs().amax(-1), scheme.rows, torch.amax)
        if scheme.rows is None and largest is not None:
            sizes = torch.full_like(sizes, largest)
        range_ = scheme.minifloat.largest if scheme.element else scheme.qmax / 2
        scales = _stored(sizes * (share / range_), scheme, divisor)
        return scales, torch.full_like(scales, float(scheme.zero))
    lo, hi = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scales = portable_scales((hi - lo) * (share / scheme.qmax)).float()
    return scales, (-share * lo / scales).round().clamp(0, scheme.qmax)


def _stored(steps: Tensor, scheme: Scheme, divisor: Tensor | None) -> Tensor:
    """Scales, float32, as they are stored for these steps."""
    if scheme.steps == "e8m0":
        return torch.exp2(steps.clamp_min(SMALLEST_SCALE).log2().ceil())
    if divisor is not None:
        least = 2.0 ** (E4M3.least_exponent - E4M3.mantissa)
        return levels.nearest_float(steps * divisor, E4M3).clamp_min(least)
    return portable_scales(steps).float()


def _divisor(weight: Tensor, scheme: Scheme, largest: float | None) -> Tensor | None:
    """What takes the scale of the largest weight to E4M3's largest number, float32 []."""
    if scheme.steps != "e4m3" or scheme.element is None:
        return None
    size = weight.abs().amax() if largest is None else torch.tensor(largest, device=weight.device)
    return (E4M3.largest * scheme.minifloat.largest / size.clamp_min(SMALLEST_SCALE)).float()


def by_shared_rows(x: Tensor, rows: int | None, reduce: Callable[..., Tensor]) -> Tensor:
    """`x` [..., N, G] with each row replaced by what rows that share scales come to together."""
    if rows == 1:
        return x
    parts = [x] if rows is None else list(torch.split(x, rows, -2))
    return torch.cat([reduce(part, -2, keepdim=True).expand_as(part) for part in parts], -2)


def _grid(scales: Tensor, zeros: Tensor, scheme: Scheme, divisor: Tensor | None) -> Grid:
    stored = None if scheme.symmetric else zeros.to(torch.uint8)
    return Grid(scales.to(torch.bfloat16), stored, scheme, divisor)


def least_errors(weight: Tensor, importance: Tensor, steps: Tensor, zeros: Tensor, scheme: Scheme) -> Tensor:
    """Which candidate is best, int64 [N, G], by tensor operations; see `kernels.search_rows`.

    Args:
        weight, importance: as of `search`.
        steps, zeros: float32 [C, N, G].
    """
    groups = weight.reshape(*steps.shape[1:], -1)
    cost, errors = importance.reshape(groups.shape[1:]), []
    for s, z in zip(steps.unsqueeze(-1), zeros.unsqueeze(-1), strict=True):
        rounded = levels.nearest(groups / s, z, scheme).mul_(s)
        errors.append(rounded.sub_(groups).square_().mul_(cost).sum(-1))
    return by_shared_rows(torch.stack(errors), scheme.rows, torch.sum).argmin(0)
