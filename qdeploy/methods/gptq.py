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

Since errors in the residual stream are corrected, more shrinkage and damping are better: see docs/gptq.md.

Searching the grid again for the weights as they were when they were rounded, and rounding again, took the KL
to the 16-bit model (all blocks, 32 × 512 tokens of documentation) from 0.0988 to 0.0951 on its unseen part,
from 0.2326 to 0.2207 on WikiText-2 test, from 0.1122 to 0.1057 on Python code; on Penn Treebank it went from
0.1752 to 0.1769. `passes` of coordinate descent come after: see `qdeploy.methods.descent`. Before all of it,
layers that write to the residual stream are corrected for errors in it: see `qdeploy.methods.correction`, and
docs/gptq.md for what that gained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from qdeploy.methods.base import LinearProblem, Solution, relative_error, rounder
from qdeploy.methods.columns import round_columns
from qdeploy.methods.correction import corrected
from qdeploy.methods.descent import descend
from qdeploy.methods.grid import Grid, fit, search
from qdeploy.methods.hessian import LARGEST_DAMP, Factor
from qdeploy.methods.trust import nearest_instead, trusted
from qdeploy.quantized import QuantizedLinear


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class GPTQ:
    """GPTQ with static groups: all scales are known before a column is rounded, so no order is stored."""

    damp: Annotated[
        float,
        Field(gt=0, le=LARGEST_DAMP, description="Fraction of H's mean diagonal added to it (paper: 0.01)."),
    ] = 0.02
    shrinkage: Annotated[
        float,
        Field(ge=0, le=1, description="How far H is shrunk toward its diagonal, against overfitting."),
    ] = 0.45
    act_order: Annotated[
        bool, Field(description="Round the most strongly driven columns first (GPTQ reference: --act-order).")
    ] = True
    grid: Annotated[
        bool, Field(description="Search scales for the least error that other columns cannot make up for.")
    ] = True
    passes: Annotated[
        int, Field(ge=0, le=100, description="How often each code is looked at again beside all others.")
    ] = 3
    correction: Annotated[
        float,
        Field(ge=0, le=1, description="Share of the residual stream's errors that layers make up for."),
    ] = 0.5


@rounder(GPTQ, needs_hessian=True, needs_reference=lambda config: config.correction > 0)
def gptq(config: GPTQ, problem: LinearProblem) -> Solution:
    """Quantize one layer.

    With fewer tokens than columns H is trusted less, and where it cannot be used the layer is rounded to
    nearest; `Solution.fallback` says so.
    """
    h = trusted("gptq", problem, config.damp, config.shrinkage, "driven" if config.act_order else "forward")
    if isinstance(h, str):
        return nearest_instead("gptq", problem, h, grid=config.grid)
    broken = _broken_lack(problem)
    if broken is None:
        problem = replace(problem, weight=corrected(problem, h.factor, config.correction * h.share))
    grid, codes = _round(config, problem, h.factor)
    codes = descend(problem.weight, codes, grid, h.factor, config.passes)
    quantized = QuantizedLinear(codes, grid.scales, grid.zeros, grid.scheme)
    error = relative_error(problem, quantized)
    return Solution(quantized, error, damp=h.factor.damp, fallback=broken or h.few)


def _round(config: GPTQ, problem: LinearProblem, factor: Factor) -> tuple[Grid, Tensor]:
    """Round, search the grid again for what the weights then were, round again; each row keeps the better.

    Returns:
        The grid, and codes uint8 [N, K].
    """
    weight, scheme = problem.weight, problem.scheme
    if not config.grid:
        grid = fit(weight, scheme)
        return grid, round_columns(weight, grid, factor).codes
    a = search(weight, scheme, factor.importance)
    first = round_columns(weight, a, factor)
    b = search(first.targets, scheme, factor.importance)
    second = round_columns(weight, b, factor)
    better = (second.losses < first.losses).unsqueeze(1)
    zeros = None if a.zeros is None or b.zeros is None else torch.where(better, b.zeros, a.zeros)
    grid = Grid(torch.where(better, b.scales, a.scales), zeros, scheme)
    return grid, torch.where(better, second.codes, first.codes)


def _broken_lack(problem: LinearProblem) -> str | None:
    """Why earlier errors cannot be made up for, None where they can or need not be."""
    if problem.lack is None or bool(torch.isfinite(problem.lack).all()):
        return None
    bad = int((~torch.isfinite(problem.lack)).sum())
    return (
        f"gptq: {problem.name}: what its outputs lack is NaN or infinite in {bad} of {problem.lack.numel()} "
        "sums; earlier errors were not made up for"
    )
