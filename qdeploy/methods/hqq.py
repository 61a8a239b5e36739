"""HQQ (Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023), without data.

It minimizes Σ |w − s(q − z)|^p with p < 1, which forgives outliers, by giving the error a variable E of its
own:

    Σ |E|^p + β/2 · (E − (w − s(q − z)))²,

in turn over E, a generalized soft threshold, and over the grid, a least squares fit to w − E; β grows.

The authors fit z and keep s. Here z is an integer, so that s(q − z) are multiples of s whatever z is: their
z, rounded, changed no group of the layers below. So s is fitted, s = Σ (w − E)(q − z) / Σ (q − z)², on
symmetric and asymmetric grids alike, and z stays where the range of the group has put it. Scales and codes
are those that are stored; a group goes on while its error falls, and is never worse than at the start.

Squared error / Σ |error|^0.7, each relative to that of the weights, mean of the 21 linears in blocks 0, 14
and 29 of SmolLM2-135M-Instruct (decoded from Q4_1), groups of 64:

                    rtn                rtn, grid          hqq                hqq, grid
    4, symmetric    0.0124 / 0.2322    0.0100 / 0.2033    0.0111 / 0.2176    0.0100 / 0.2023
    4, asymmetric   0.0093 / 0.2113    0.0078 / 0.1898    0.0083 / 0.1979    0.0078 / 0.1888
    3, symmetric    0.0560 / 0.3934    0.0408 / 0.3395    0.0454 / 0.3584    0.0411 / 0.3377
    3, asymmetric   0.0423 / 0.3593    0.0342 / 0.3292    0.0370 / 0.3388    0.0343 / 0.3283
    2, symmetric    0.2824 / 0.6911    0.1605 / 0.5399    0.1593 / 0.5256    0.1560 / 0.5171
    2, asymmetric   0.2215 / 0.6407    0.1352 / 0.5152    0.1387 / 0.5161    0.1357 / 0.5072

β is 10 in units of the weights, as published, which leaves E = 0 for errors below 0.17: those of all but
0.003 % of this model's weights at 4 bits, 7 % at 2. Where E = 0 the fit is plain least squares. With errors
in steps of the first grid instead, the p-norm falls further (4 bits symmetric, searched grid: to 0.1982),
but the model gets worse, and so it does with the searched grid: see docs/methods.md. With 8 bits,
better scales lie closer than two bfloat16 numbers; in tests nothing changed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from qdeploy.methods.base import LinearProblem, Solution, relative_error, rounder
from qdeploy.methods.grid import fit, search
from qdeploy.quantized import portable_scales
from qdeploy.schemes import Scheme

GROWTH = 1.01
"""What β is multiplied by after each iteration."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class HQQ:
    """Half-quadratic quantization of the scales."""

    p: Annotated[
        float, Field(gt=0, le=1, description="Norm of the error: the smaller, the less outliers count.")
    ] = 0.7
    beta: Annotated[
        float, Field(gt=0, description="How closely E follows the error of the weights at first.")
    ] = 10.0
    iterations: Annotated[
        int, Field(ge=1, le=1000, description="At most so often is a scale improved (HQQ: 20).")
    ] = 20
    grid: Annotated[
        bool, Field(description="Begin with searched scales instead of those that span the range.")
    ] = False


def _refusal(scheme: Scheme) -> str | None:
    return "it fits scales of integers; take rtn or gptq" if scheme.element is not None else None


@rounder(HQQ, needs_hessian=False, refusal=_refusal)
def hqq(config: HQQ, problem: LinearProblem) -> Solution:
    """Quantize one layer, looking at its weights alone."""
    grid = (search if config.grid else fit)(problem.weight, problem.scheme)
    groups = problem.weight.reshape(grid.scales.numel(), -1)
    start, z = (column.float().view(-1, 1) for column in (grid.scales, grid.offsets()))
    scales = improved(config, groups, start, z, grid.scheme.qmax)
    grid = replace(grid, scales=scales.view_as(grid.scales).to(grid.scales.dtype))
    quantized = grid.nearest(problem.weight)
    return Solution(quantized, relative_error(problem, quantized))


def improved(config: HQQ, w: Tensor, scales: Tensor, z: Tensor, qmax: int) -> Tensor:
    """Scales with which no group has a larger p-norm of the error than with those given.

    Args:
        w: float32 [M, C], M groups.
        scales, z: float32 [M, 1].

    Returns:
        float32 [M, 1], exact in bfloat16.
    """
    found, left = scales.clone(), torch.arange(len(w), device=w.device)
    beta = config.beta
    steps, error = _rounded(w, scales, z, qmax)
    least = _norm(error, config.p)
    for _ in range(config.iterations):
        s = _least_squares(w - shrunk(error, beta, config.p), steps)
        steps, error = _rounded(w, s, z, qmax)
        norm = _norm(error, config.p)
        falls = norm < least
        left, w, z, steps, error, s, least = (kept[falls] for kept in (left, w, z, steps, error, s, norm))
        found[left] = s
        beta *= GROWTH
        if not len(left):
            break
    return found


def shrunk(error: Tensor, beta: float, p: float) -> Tensor:
    """The E of β: the generalized soft threshold sign(e)·max(0, |e| − |e|^(p−1) / β), exact for p = 1."""
    size = error.abs()
    return size.sub_(size.pow(p - 1).div_(beta)).clamp_min_(0).copysign_(error)


def _rounded(w: Tensor, s: Tensor, z: Tensor, qmax: int) -> tuple[Tensor, Tensor]:
    """Steps q − z from zero, and w − s(q − z)."""
    steps = (w / s).round_().add_(z).clamp_(0, qmax).sub_(z)
    return steps, w - s * steps


def _least_squares(target: Tensor, steps: Tensor) -> Tensor:
    """The s [M, 1] with the least ‖target − s·steps‖² in each row, as it is stored."""
    products, squares = (target * steps).sum(1, keepdim=True), steps.square().sum(1, keepdim=True)
    return portable_scales(products / squares.clamp_min(1)).float()  # no step: the smallest scale


def _norm(error: Tensor, p: float) -> Tensor:
    """Σ |error|^p of each row, [M]."""
    return error.abs().pow_(p).sum(1)
