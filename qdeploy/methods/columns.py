"""Rounding a matrix column by column, later ones making up for the errors of earlier ones: GPTQ's inner loop.

W [N, K] and H⁻¹ = UᵀU as in `qdeploy.methods.gptq`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qdeploy import levels
from qdeploy.methods import kernels
from qdeploy.methods.grid import Grid
from qdeploy.methods.hessian import Factor
from qdeploy.schemes import Scheme

LEAF = 16
"""Columns that are rounded one at a time between matrix products."""


@dataclass(frozen=True)
class Rounded:
    """Columns that were rounded one by one.

    Attributes:
        codes: uint8 [N, K].
        targets: float32 [N, K], what each weight was when it was rounded.
        losses: float32 [N], (w − q)H(w − q)ᵀ of each row, for the shrunk and damped H.
    """

    codes: Tensor
    targets: Tensor
    losses: Tensor


def round_columns(weight: Tensor, grid: Grid, factor: Factor) -> Rounded:
    """Round the columns of `weight` float32 [N, K] in the factor's order."""
    if not kernels.fit_for(weight):
        return round_on_device(weight, grid, factor)
    found, targets, losses = torch.empty_like(weight), torch.empty_like(weight), weight.new_empty(len(weight))
    tensors = (weight, factor.order, factor.lower, grid.steps(), grid.offsets())
    arrays = [tensor.contiguous().numpy() for tensor in tensors]
    results = [tensor.numpy() for tensor in (found, targets, losses)]
    kind = kernels.Levels.of(grid.scheme).arguments
    kernels.over_rows(kernels.round_rows, len(weight), *arrays, *kind, *results)
    return Rounded(grid.encode(found), targets, losses)


def round_on_device(weight: Tensor, grid: Grid, factor: Factor) -> Rounded:
    """The same with one tensor operation for all rows at a time."""
    order, columns = factor.order, weight.shape[1]
    group = order // (columns // grid.scales.shape[1])
    # Transposed, so that a column of W is contiguous.
    w = weight.T[order].contiguous()
    s, z = grid.steps().T[group], grid.offsets().T[group]
    rounding = _Rounding(w, factor.upper, s, z, grid.scheme)
    rounding.run()
    back = torch.argsort(order)
    codes = levels.encode(rounding.q, z, grid.scheme)
    codes, targets = (found[back].T.contiguous() for found in (codes, rounding.w))
    return Rounded(codes, targets, rounding.e.square().sum(0))


class _Rounding:
    """The recursion over column ranges; W, E, S, Z and levels Q are [K, N] in the order of rounding."""

    def __init__(self, w: Tensor, u: Tensor, s: Tensor, z: Tensor, scheme: Scheme) -> None:
        self.w, self.u, self.s, self.z, self.scheme = w, u, s, z, scheme
        self.e, self.q = torch.empty_like(w), torch.empty_like(w)

    def run(self) -> None:
        self._range(0, len(self.w))

    def _range(self, start: int, end: int) -> None:
        """The paper's lazy batch updates, at every scale: halves meet in one matrix product."""
        if end - start <= LEAF:
            for j in range(start, end):
                self._column(start, j)
            return
        middle = (start + end) // 2
        self._range(start, middle)
        self.w[middle:end].addmm_(self.u[start:middle, middle:end].T, self.e[start:middle], alpha=-1)
        self._range(middle, end)

    def _column(self, start: int, j: int) -> None:
        if j > start:
            self.w[j] -= self.u[start:j, j] @ self.e[start:j]
        w = self.w[j]
        self.q[j] = levels.nearest(w / self.s[j], self.z[j], self.scheme)
        self.e[j] = (w - self.s[j] * self.q[j]) / self.u[j, j]
