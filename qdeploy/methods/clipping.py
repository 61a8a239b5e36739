"""AWQ's clipping (arXiv 2306.00978, the authors' code): the largest weights of a group are cut off.

What is cut loses, and the rest of the group gets a finer grid. Of some shares of a group's largest |w| the
one is taken with which rounding the cut weights to nearest changes least of what this group adds to the
outputs: e H_g eᵀ for the group's error e and its own part of H, so that every calibration token counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy.methods.grid import fit
from qdeploy.methods.hessian import Hessian
from qdeploy.schemes import Scheme

SHARES = tuple(1 - step / 20 for step in range(11))
"""Of the largest weight, where it is cut off: all of it, down to half."""

FEWEST = 512
"""Calibration tokens below which nothing is cut: a search on one token is worse than none."""


def clipped(weight: Tensor, hessian: Hessian, scheme: Scheme) -> Tensor:
    """Weights float32 [N, K], each group cut off where that is best.

    With fewer than FEWEST tokens, inputs that hold NaN or infinity, or scales that rows share, they stay as
    they are.
    """
    if hessian.tokens < FEWEST or not hessian.finite or scheme.rows != 1:
        return weight
    n, k = weight.shape
    groups = weight.view(n, scheme.groups(k), -1)
    own = _own_parts(hessian.matrix, groups.shape[1])
    best, least = weight, torch.full(groups.shape[:2], torch.inf, device=weight.device)
    for share in SHARES:
        most = share * groups.abs().amax(-1, keepdim=True)
        cut = groups.clamp(-most, most).flatten(1)
        error = (fit(cut, scheme).nearest(cut).dequantize() - weight).view_as(groups)
        cost = torch.einsum("ngk,gkl,ngl->ng", error, own, error)
        better = cost < least
        least = torch.where(better, cost, least)
        best = torch.where(better.unsqueeze(-1), cut.view_as(groups), best.view_as(groups)).flatten(1)
    return best


def _own_parts(h: Tensor, groups: int) -> Tensor:
    """The blocks on H's diagonal, float32 [G, g, g]."""
    size = len(h) // groups
    return torch.stack([h[i : i + size, i : i + size] for i in range(0, len(h), size)])
