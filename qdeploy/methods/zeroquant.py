"""ZeroQuant (Yao et al., arXiv 2206.01861): groups of weights to nearest, activations token by token.

The number format says it all, `W8A8` or `W4A8`, so that the rounding is that of `rtn`. Of ZeroQuant-V2
(arXiv 2303.08302, section 5) it has the low-rank compensation (LoRC): the error W − Ŵ is approximated by a
product of two thin matrices in 16 bits, which no engine adds to a quantized layer: such layers are stored
dequantized. The distillation of layers is not here.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from qdeploy.methods.base import LinearProblem, Solution, relative_error, rounder
from qdeploy.methods.rtn import RTN, round_to_nearest
from qdeploy.reference_linear import ReferenceLinear, portable


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ZeroQuant:
    """ZeroQuant, with the low-rank compensation of ZeroQuant-V2 on demand."""

    rank: Annotated[
        int,
        Field(ge=0, description="Of the compensation; 0 for none (ZeroQuant-V2: 8). Above 0 a reference."),
    ] = 0


def _without_kernel(config: ZeroQuant) -> str | None:
    return "engines have no kernel that adds a low-rank matrix" if config.rank else None


@rounder(
    ZeroQuant,
    needs_hessian=False,
    without_kernel=_without_kernel,
    needs_all_rows=True,
)
def zeroquant(config: ZeroQuant, problem: LinearProblem) -> Solution:
    """Quantize one layer."""
    solution = round_to_nearest(RTN(), problem)
    if not config.rank:
        return solution
    rounded = solution.quantized.dequantize()
    weight = rounded + _low_rank(problem.weight - rounded, config.rank)
    n, k = problem.weight.shape
    bits = solution.quantized.bits + 16 * min(config.rank, n, k) * (n + k) / (n * k)
    quantized = ReferenceLinear(portable(weight), bits)
    return Solution(quantized, relative_error(problem, quantized))


def _low_rank(error: Tensor, rank: int) -> Tensor:
    """The nearest matrix of that rank, its two factors rounded to 16 bits."""
    u, s, v = torch.linalg.svd(error, full_matrices=False)
    root = s[:rank].sqrt()
    left, right = portable(u[:, :rank] * root), portable(root[:, None] * v[:rank])
    return left.float() @ right.float()
