"""Incoherence processing (QuIP: Chee et al., arXiv 2307.13304, section 4): no weight or direction stands out.

Columns are first scaled by D = (diag H / diag WᵀW)^¼, which evens out inputs and weights, then W and H are
turned by random orthogonal matrices on both sides, W ← UᵀWV and H ← VᵀHV. Entries of W become nearly
Gaussian, and rounding to nearest loses about as little as it can. With `ldlq` after it this is QuIP; its
matrices are Kronecker products of two random orthogonal ones, those of QuIP# (arXiv 2402.04396) randomized
Hadamard ones.

The scales of the grid are those of the number format, by group or channel, in place of QuIP's one for the
whole matrix.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from qdeploy.methods.base import LinearProblem
from qdeploy.methods.basis import Turned, basis
from qdeploy.methods.hadamard import Orthogonal, random_hadamard
from qdeploy.methods.hessian import Hessian

LEAST = 1e-4
"""What a column's scale stays above, relative to their mean: dead columns have none."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Incoherence:
    """Incoherence processing."""

    kind: Annotated[
        Literal["hadamard", "orthogonal"],
        Field(description="Randomized Hadamard matrices, or products of random orthogonal ones."),
    ] = "hadamard"
    rescale: Annotated[
        bool, Field(description="Even out columns and inputs first (QuIP: --pre_rescale).")
    ] = True
    seed: Annotated[int, Field(ge=0, description="Of the random matrices.")] = 0


@basis(Incoherence)
def incoherent(config: Incoherence, problem: LinearProblem) -> Turned:
    """The layer in random bases of its inputs and outputs."""
    u, v = (turn.to(problem.weight.device) for turn in turns(config, *problem.weight.shape))
    d = _scales(problem) if config.rescale else torch.ones_like(problem.weight[0])

    def there(weight: Tensor) -> Tensor:
        return u.turn_rows(v.turn((weight * d).double())).float()

    def back(weight: Tensor) -> Tensor:
        return u.turn_rows_back(v.turn_back(weight.double())).float() / d

    hessian = problem.hessian and problem.hessian.turned(v, d)
    # M = (2/n) Σ rxᵀ: r is an output, x an input.
    lack = None if problem.lack is None else u.turn_rows(v.turn((problem.lack / d).double())).float()
    turned = replace(problem, weight=there(problem.weight), hessian=hessian, lack=lack, largest=None)
    return Turned(turned, back)


def turns(config: Incoherence, n: int, k: int) -> tuple[Orthogonal, Orthogonal]:
    """U [N, N] and V [K, K]."""
    generator = torch.Generator().manual_seed(config.seed)
    return _draw(config, n, generator), _draw(config, k, generator)


def _draw(config: Incoherence, size: int, generator: torch.Generator) -> Orthogonal:
    if config.kind == "hadamard":
        return random_hadamard(size, generator)
    a = max(factor for factor in range(1, int(size**0.5) + 1) if size % factor == 0)
    left, right = (
        torch.linalg.qr(torch.randn(order, order, generator=generator, dtype=torch.float64))[0]
        for order in (a, size // a)
    )
    return Orthogonal(torch.ones(size, dtype=torch.float64), left, right)


def _scales(problem: LinearProblem) -> Tensor:
    """D [K] around 1; ones without calibration, or with an unusable one."""
    weights = problem.weight.square().sum(0)
    hessian: Hessian | None = problem.hessian
    if hessian is None or not hessian.tokens or not hessian.finite:
        return torch.ones_like(weights)
    inputs = hessian.diagonal
    used = (inputs > 0) & (weights > 0)
    if not used.any():
        return torch.ones_like(weights)
    d = torch.where(used, inputs / torch.where(used, weights, 1.0), 1.0) ** 0.25
    d = d / d[used].log().mean().exp()
    return torch.where(used, d, 1.0).clamp(LEAST, 1 / LEAST)
