"""GPTQ (Frantar et al., arXiv 2210.17323): round columns one by one, let the others make up for the error.

W [N, K] is rounded to Q so as to minimize tr((W − Q)H(W − Q)ᵀ). With H⁻¹ = UᵀU, U upper triangular, column j
is rounded to q, and e = (w_j − q) / U_jj is taken off the columns yet to come: W_{j:} ← W_{j:} − e·U_{j,j:}.

damp, act_order and static groups are those of the paper's code. Plain GPTQ overfits its calibration text; the
scale grid and the shrinkage are against that. Geometric mean of the relative error over 12 linears of
SmolLM2-135M-Instruct (blocks 0, 10, 29; 4 bits symmetric, group 64; 16 × 512 tokens of documentation):

                               calibration text   unseen documentation   WikiText-2 test
    round to nearest                    0.00647                0.00654           0.00660
    damp 0.01, act_order                0.00076                0.00132           0.00411
    + grid                              0.00071                0.00118           0.00294
    + shrinkage 0.3                     0.00089                0.00123           0.00246

The grid was weighted by diag H there. Weighted by 1/U_jj² (default), which is what an error costs once the
columns after it have made up for it, the error falls by a further 2 to 4 % on every text, seen or unseen.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from qdeploy.methods.base import LinearProblem, Solution, relative_error, rounder
from qdeploy.methods.grid import Grid, fit, search
from qdeploy.methods.hessian import LARGEST_DAMP, Factor, Hessian
from qdeploy.methods.rtn import RTN, round_to_nearest
from qdeploy.quantized import QuantizedLinear

LEAF = 16
"""Columns that are rounded one at a time between matrix products."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GPTQ:
    """GPTQ with static groups: scales come from the original weights, so that no column order is stored."""

    damp: Annotated[
        float,
        Field(gt=0, le=LARGEST_DAMP, description="Fraction of H's mean diagonal added to it (paper: 0.01)."),
    ] = 0.01
    shrinkage: Annotated[
        float,
        Field(ge=0, le=1, description="How far H is shrunk toward its diagonal, against overfitting."),
    ] = 0.3
    act_order: Annotated[
        bool, Field(description="Round the most strongly driven columns first (GPTQ reference: --act-order).")
    ] = True
    grid: Annotated[
        bool, Field(description="Search scales for the least error that other columns cannot make up for.")
    ] = True


@rounder(GPTQ, needs_hessian=True)
def gptq(config: GPTQ, problem: LinearProblem) -> Solution:
    """Quantize one layer.

    With fewer tokens than columns H is trusted less, and where it cannot be used the layer is rounded to
    nearest; `Solution.fallback` says so.
    """
    hessian = problem.hessian
    if hessian is None or not hessian.tokens:
        return _fallback(config, problem, "no calibration token reached it")
    shrinkage = _shrinkage(config, hessian)
    factor = hessian.factor(config.damp, shrinkage, config.act_order)
    if factor is None:
        return _fallback(config, problem, _unusable(config, hessian))
    if config.grid:
        grid = search(problem.weight, problem.scheme, factor.importance)
    else:
        grid = fit(problem.weight, problem.scheme)
    codes = round_columns(problem.weight, grid, factor)
    quantized = QuantizedLinear(codes, grid.scales, grid.zeros, grid.scheme)
    few = _too_few(config, problem.name, hessian) if shrinkage > config.shrinkage else None
    return Solution(quantized, relative_error(problem, quantized), damp=factor.damp, fallback=few)


def _shrinkage(config: GPTQ, hessian: Hessian) -> float:
    """How far H is shrunk: all the way with no token, as configured from as many tokens as columns on.

    What a covariance estimated from n tokens gets wrong goes with √(K/n); see the table in docs/experts.md.
    """
    trust = math.sqrt(min(1.0, hessian.tokens / len(hessian.diagonal)))
    return config.shrinkage + (1 - config.shrinkage) * (1 - trust)


def _too_few(config: GPTQ, name: str, hessian: Hessian) -> str:
    return (
        f"gptq: {name}: only {hessian.tokens} calibration tokens for {len(hessian.diagonal)} columns; H was "
        f"shrunk by {_shrinkage(config, hessian):.2f} toward its diagonal, not {config.shrinkage:g}"
    )


def _fallback(config: GPTQ, problem: LinearProblem, reason: str) -> Solution:
    # An unusable H cannot measure the error either.
    solution = round_to_nearest(RTN(grid=config.grid), replace(problem, hessian=None))
    return replace(solution, fallback=f"gptq: {problem.name}: {reason}; rounded to nearest instead")


def _unusable(config: GPTQ, hessian: Hessian) -> str:
    if not hessian.finite:
        return f"its calibration inputs hold NaN or infinity ({hessian.tokens} tokens)"
    return (
        f"its Hessian is not positive definite ({hessian.dead} of {len(hessian.diagonal)} columns dead, "
        f"{hessian.tokens} tokens, damp {config.damp:g} retried up to {LARGEST_DAMP:g})"
    )


def round_columns(weight: Tensor, grid: Grid, factor: Factor) -> Tensor:
    """Codes uint8 [N, K] of `weight` float32 [N, K], columns rounded in the factor's order."""
    order, columns = factor.order, weight.shape[1]
    group = order // (columns // grid.scales.shape[1])
    # Transposed, so that a column of W is contiguous.
    w = weight.T[order].contiguous()
    s, z = grid.scales.float().T[group], grid.offsets().T[group]
    codes = _Rounding(w, factor.upper, s, z, grid.scheme.qmax).run()
    return codes[torch.argsort(order)].T.contiguous()


class _Rounding:
    """The recursion over column ranges; all of W, E, S, Z are [K, N] in the order of rounding."""

    def __init__(self, w: Tensor, u: Tensor, s: Tensor, z: Tensor, qmax: int) -> None:
        self.w, self.u, self.s, self.z, self.qmax = w, u, s, z, qmax
        self.e = torch.empty_like(w)
        self.q = torch.empty_like(w, dtype=torch.uint8)

    def run(self) -> Tensor:
        self._range(0, len(self.w))
        return self.q

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
        w = self.w[j]
        if j > start:
            w = w - self.u[start:j, j] @ self.e[start:j]
        q = (w / self.s[j]).round_().add_(self.z[j]).clamp_(0, self.qmax)
        self.q[j] = q
        self.e[j] = (w - self.s[j] * (q - self.z[j])) / self.u[j, j]
