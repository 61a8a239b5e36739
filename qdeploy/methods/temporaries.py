"""Memory that solving a layer takes for a while, beside its weight and its Hessian."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import nn

from qdeploy.methods.base import needs_reference
from qdeploy.methods.tuning import tunes
from qdeploy.planned import Plan

SQUARES = 6
"""Matrices [K, K] that are alive while a Hessian is factorized: itself, ordered, damped, factors."""

COPIES = 6
"""Float32 copies of a weight that are alive while its columns are rounded: target, error, scales …"""

CORRECTED = 2
"""More of them where errors are made up for: what outputs lack, and the weight that results."""

TURNED = 2
"""More of the Hessian for each of the SQUARES while it is turned into another basis, in float64."""

TRANSFORMED = 6
"""Float32 copies of the weights of layers that share an input, while transforms try scales for them."""


TUNED, TUNING = 7, 4
"""Float32 copies of all weights that are tuned together: their own, in steps, V, codes, Ŵ and its gradient;
more of one layer while V moves."""


def hessian_bytes(in_features: int) -> int:
    """Bytes of one Hessian [K, K]."""
    return 4 * in_features**2


def lack_bytes(linear: nn.Linear, config: object) -> int:
    """Bytes of what is learnt about the errors that a layer could make up for."""
    return 4 * linear.weight.numel() if needs_reference(config) else 0


def solving_bytes(linears: Mapping[str, nn.Linear], plan: Plan) -> int:
    """Of what is costliest: a Hessian's factorization, the rounding of columns, scales tried by transforms.

    Layers beside each other that are as wide are taken to read the same input.
    """
    costs, tried = [0], Counter[tuple[str, int]]()
    for name, module in linears.items():
        if name in plan and plan[name].scalings:
            tried[name.rpartition(".")[0], module.in_features] += TRANSFORMED * 4 * module.weight.numel()
        if name in plan:
            squares = hessian_bytes(module.in_features) if plan[name].needs_data else 0
            copies = COPIES + (CORRECTED if needs_reference(plan[name].rounder) else 0)
            squares += TURNED * hessian_bytes(module.in_features) if plan[name].bases else 0
            costs += [SQUARES * squares, 2 * squares + copies * 4 * module.weight.numel()]
    tuned = [
        4 * module.weight.numel()
        for name, module in linears.items()
        if name in plan and tunes(plan[name].rounder)
    ]
    costs.append(TUNED * sum(tuned) + TUNING * max(tuned, default=0))
    return max(costs + list(tried.values()))
