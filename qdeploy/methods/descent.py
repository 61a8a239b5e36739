"""Coordinate descent on the codes: GPTQ looks at each column once, this looks again beside all others.

The loss tr((W − Q)H(W − Q)ᵀ) is, in one weight with the others fixed, a parabola whose least point is
Q_nj + ((W − Q)H)_nj / H_jj; rounded to the grid it never raises the loss. QuIP (arXiv 2307.13304) does the
same as its greedy updates. A pass changes few codes, and costs little more than looking at them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy import levels
from qdeploy.methods import kernels
from qdeploy.methods.grid import Grid
from qdeploy.methods.hessian import Factor
from qdeploy.schemes import Scheme


def descend(weight: Tensor, codes: Tensor, grid: Grid, factor: Factor, passes: int) -> Tensor:
    """Codes uint8 [N, K] with no greater loss than `codes` for `weight` float32 [N, K], after some passes."""
    codes = codes.clone(memory_format=torch.contiguous_format)
    if not passes:
        return codes
    gradient = (weight - grid.quantized(codes).dequantize()) @ factor.damped
    steps, zeros = grid.steps(), grid.offsets()
    if kernels.fit_for(weight):
        found, kind = grid.decode(codes), kernels.Levels.of(grid.scheme).arguments
        arrays = [tensor.numpy() for tensor in (factor.damped, gradient, steps, zeros)]
        kernels.over_rows(kernels.descend_rows, len(weight), *arrays, *kind, passes, found.numpy())
        return grid.encode(found)
    for _ in range(passes):
        descend_columns(factor.damped, gradient, steps, zeros, grid.scheme, codes)
    return codes


def descend_columns(
    h: Tensor, gradient: Tensor, steps: Tensor, zeros: Tensor, scheme: Scheme, codes: Tensor
) -> None:
    """One pass over all rows at a time, by tensor operations; arguments as of `kernels.descend_rows`."""
    width = len(h) // steps.shape[1]
    for j in range(len(h)):
        s, z = steps[:, j // width], zeros[:, j // width]
        old = levels.decode(codes[:, j], z, scheme)
        new = levels.nearest(old + gradient[:, j] / h[j, j] / s, z, scheme)
        codes[:, j] = levels.encode(new, z, scheme)
        gradient.addr_(s * (new - old), h[j], alpha=-1)
