"""LDLQ (QuIP: Chee et al., arXiv 2307.13304, section 3): a column makes up for the errors of those after it.

H = (L̇ + I)D(L̇ + I)ᵀ with L̇ strictly lower triangular. Columns are rounded from the last to the first,

    Ŵ_k = Q(W_k + (W − Ŵ)_{>k} L̇_{>k,k}),

to the nearest value of a grid. The paper shows that no other linear feedback has a smaller worst-case loss
tr((W − Ŵ)H(W − Ŵ)ᵀ), and that GPTQ is the same with the columns in the opposite order; so it runs in GPTQ's
loop here (`qdeploy.methods.columns`). Its code offers two extensions, together `ldlqRG`: the most strongly
driven columns first, and greedy passes over the codes afterwards (`qdeploy.methods.descent`).

Unlike GPTQ in this project it neither shrinks H nor corrects earlier errors: see docs/methods.md.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from qdeploy.methods.base import LinearProblem, Solution, relative_error, rounder
from qdeploy.methods.columns import round_columns
from qdeploy.methods.descent import descend
from qdeploy.methods.grid import fit, search
from qdeploy.methods.hessian import LARGEST_DAMP
from qdeploy.methods.trust import nearest_instead, trusted
from qdeploy.quantized import QuantizedLinear


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LDLQ:
    """LDLQ, with static groups as GPTQ has them."""

    damp: Annotated[
        float,
        Field(gt=0, le=LARGEST_DAMP, description="Fraction of H's mean diagonal added to it (QuIP: 0.01)."),
    ] = 0.01
    act_order: Annotated[
        bool,
        Field(description="Round the most strongly driven columns first, not the last (QuIP: ldlqRG)."),
    ] = False
    grid: Annotated[
        bool, Field(description="Search scales for the least error that other columns cannot make up for.")
    ] = True
    passes: Annotated[
        int,
        Field(ge=0, le=100, description="How often each code is looked at again (QuIP's greedy updates)."),
    ] = 0


@rounder(LDLQ, needs_hessian=True)
def ldlq(config: LDLQ, problem: LinearProblem) -> Solution:
    """Quantize one layer.

    With fewer tokens than columns H is shrunk toward its diagonal, and where it cannot be used the layer is
    rounded to nearest; `Solution.fallback` says so.
    """
    h = trusted("ldlq", problem, config.damp, 0.0, "driven" if config.act_order else "backward")
    if isinstance(h, str):
        return nearest_instead("ldlq", problem, h, grid=config.grid)
    weight, scheme = problem.weight, problem.scheme
    grid = search(weight, scheme, h.factor.importance) if config.grid else fit(weight, scheme)
    codes = round_columns(weight, grid, h.factor).codes
    codes = descend(weight, codes, grid, h.factor, config.passes)
    quantized = QuantizedLinear(codes, grid.scales, grid.zeros, grid.scheme)
    return Solution(quantized, relative_error(problem, quantized), damp=h.factor.damp, fallback=h.few)
