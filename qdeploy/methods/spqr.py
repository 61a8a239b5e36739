"""SpQR (Dettmers et al., arXiv 2306.03078): GPTQ with small groups, and the few weights that hurt most kept.

Columns are rounded in GPTQ's order, in groups of the scheme's size. When a group's turn comes, its scales and
zero points are fitted to the weights as they are by then, without those that would stretch the grid: weights
without which the others of their group lose less, by more than a threshold (section 4.2). Scales and zero
points are themselves rounded, to a few bits with a range for some rows together (section 4.1). Whatever a
column then still loses too much of is kept as it is, in 16 bits. A loss is (w − q)² / U_jj², and the
threshold a share of what rounding every weight to its column's mean would lose.

No engine has a kernel for scattered outliers: layers are stored dequantized, in 16 bits.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from qdeploy.methods.base import LinearProblem, Solution, relative_error, rounder
from qdeploy.methods.hessian import LARGEST_DAMP, Factor
from qdeploy.methods.trust import nearest_instead, trusted
from qdeploy.quantized import SMALLEST_SCALE
from qdeploy.reference_linear import ReferenceLinear, portable
from qdeploy.schemes import Scheme

OUTLIER_BITS = 32
"""Of a weight that is kept: its value and its column, 16 bits each."""

AT_ONCE = 1 << 22
"""Weights, each beside all others of its group, that are looked at together."""

WIDEST = 128
"""Columns of a group: the work goes with their square."""

RANGE_BITS = 32
"""Of the range of scales, or of zero points, of some rows: two numbers of 16 bits."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SpQR:
    """SpQR; the paper's groups are of 16 columns, asymmetric."""

    threshold: Annotated[
        float,
        Field(ge=0, description="Loss above which a weight is kept, relative to columns' variance."),
    ] = 0.2
    statistics_bits: Annotated[
        int, Field(ge=2, le=8, description="Bits of scales and of zero points (paper: 3).")
    ] = 3
    statistics_rows: Annotated[
        int, Field(ge=1, description="Rows whose scales share a range (paper: 16).")
    ] = 16
    damp: Annotated[
        float,
        Field(gt=0, le=LARGEST_DAMP, description="Fraction of H's mean diagonal added to it (code: 1)."),
    ] = 1.0
    act_order: Annotated[
        bool, Field(description="Round the most strongly driven columns first, and group them in that order.")
    ] = True


def _refusal(scheme: Scheme) -> str | None:
    if scheme.element is not None or scheme.activations is not None:
        return "it rounds weights to integers and leaves activations alone; take a scheme such as W4A16_ASYM"
    if scheme.group_size is None or not 2 <= scheme.group_size <= WIDEST:
        return f"it needs groups of 2 to {WIDEST} columns, the paper's 16; take --group-size 16"
    return None


@rounder(
    SpQR,
    needs_hessian=True,
    without_kernel=lambda _: "engines have no kernel for weights that are kept in 16 bits among others",
    refusal=_refusal,
    needs_all_rows=True,
)
def spqr(config: SpQR, problem: LinearProblem) -> Solution:
    """Quantize one layer; where H cannot be used it is rounded to nearest, as `Solution.fallback` says."""
    h = trusted("spqr", problem, config.damp, 0.0, "driven" if config.act_order else "forward")
    if isinstance(h, str):
        return nearest_instead("spqr", problem, h, grid=True)
    run = _Run(config, problem, h.factor)
    for start in range(0, run.columns, run.width):
        run.group(slice(start, start + run.width))
    quantized = ReferenceLinear(portable(run.result()), run.bits())
    return Solution(quantized, relative_error(problem, quantized), damp=h.factor.damp, fallback=h.few)


class _Run:
    """One layer on its way, columns in the order of rounding: w [N, K] becomes what it is rounded to."""

    def __init__(self, config: SpQR, problem: LinearProblem, factor: Factor) -> None:
        self.config, self.scheme = config, problem.scheme
        self.order, self.u = factor.order, factor.upper
        self.w = problem.weight[:, self.order].clone()
        self.columns = self.w.shape[1]
        self.width = self.columns // self.scheme.groups(self.columns)
        costs = self.w.var(0, correction=0) / self.u.diagonal().square()
        self.threshold = config.threshold * float(costs.mean())
        self.kept = 0

    def result(self) -> Tensor:
        """The weight in the order of its own columns."""
        return self.w[:, torch.argsort(self.order)]

    def bits(self) -> float:
        """Of storage for a weight: codes, scales and zero points and their ranges, and what is kept."""
        statistics = 1 if self.scheme.symmetric else 2
        ranges = RANGE_BITS / self.config.statistics_rows
        grid = statistics * (self.config.statistics_bits + ranges) / self.width
        return self.scheme.bits + grid + OUTLIER_BITS * self.kept / self.w.numel()

    def group(self, columns: slice) -> None:
        """Round the columns of one group, and let those after it make up for it."""
        w, u = self.w[:, columns], self.u[columns, columns]
        losses = u.diagonal().square().reciprocal()
        outlying = _gains(w, losses, self.scheme) > self.threshold
        inliers = ~outlying
        mean = (w * inliers).sum(1, keepdim=True) / inliers.sum(1, keepdim=True).clamp_min(1)
        scale, zero = self._grid(torch.where(inliers, w, mean))
        errors = torch.empty_like(w)
        for j in range(w.shape[1]):
            column = w[:, j]
            rounded = _rounded(column, scale, zero, self.scheme)
            kept = (column - rounded).square() * losses[j] > self.threshold
            rounded = torch.where(kept, column, rounded)
            self.kept += int(kept.sum())
            errors[:, j] = (column - rounded) / u[j, j]
            w[:, j + 1 :] -= errors[:, j : j + 1] * u[j, j + 1 :]
            w[:, j] = rounded
        self.w[:, columns.stop :] -= errors @ self.u[columns, columns.stop :]

    def _grid(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, float32 [N], fitted to rows of weights and rounded themselves."""
        scale, zero = _fit(w, self.scheme)
        scale = self._round_statistics(scale).clamp_min(SMALLEST_SCALE)
        return scale, zero if self.scheme.symmetric else self._round_statistics(zero)

    def _round_statistics(self, x: Tensor) -> Tensor:
        """`x` [N] rounded to levels between the least and the greatest of each few rows."""
        levels = (1 << self.config.statistics_bits) - 1
        parts = []
        for part in torch.split(x, self.config.statistics_rows):
            low = part.amin()
            step = ((part.amax() - low) / levels).clamp_min(torch.finfo(x.dtype).tiny)
            parts.append(((part - low) / step).round() * step + low)
        return torch.cat(parts)


def _gains(w: Tensor, losses: Tensor, scheme: Scheme) -> Tensor:
    """How much less a group [N, g] loses without each of its weights, float32 [N, g]."""
    rows = max(1, AT_ONCE // w.shape[1] ** 2)
    return torch.cat([_gains_of(part, losses, scheme) for part in torch.split(w, rows)])


def _gains_of(w: Tensor, losses: Tensor, scheme: Scheme) -> Tensor:
    n, g = w.shape
    scale, zero = (part.unsqueeze(1) for part in _fit(w, scheme))
    whole = ((w - _rounded(w, scale, zero, scheme)).square() * losses).sum(1, keepdim=True)
    # Row i of each group: all but weight i.
    others = ~torch.eye(g, dtype=torch.bool, device=w.device)
    rest = w.unsqueeze(1).expand(n, g, g)[:, others].view(n, g, g - 1)
    scale, zero = (part.view(n, g, 1) for part in _fit(rest.reshape(n * g, g - 1), scheme))
    costs = losses.expand(g, g)[others].view(g, g - 1)
    return whole - ((rest - _rounded(rest, scale, zero, scheme)).square() * costs).sum(2)


def _fit(w: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Scale and zero point that span each row [R, C] and 0, float32 [R]; the zero point is not rounded."""
    if scheme.symmetric:
        scale = w.abs().amax(1) * (2 / scheme.qmax)
        return scale.clamp_min(SMALLEST_SCALE), torch.full_like(scale, float(scheme.zero))
    low, high = w.amin(1).clamp_max(0), w.amax(1).clamp_min(0)
    scale = ((high - low) / scheme.qmax).clamp_min(SMALLEST_SCALE)
    return scale, -low / scale


def _rounded(w: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    return scale * ((w / scale + zero).round().clamp(0, scheme.qmax) - zero)
