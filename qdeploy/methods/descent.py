"""Coordinate descent on the codes: GPTQ looks at each column once, this looks again beside all others.

The loss tr((W − Q)H(W − Q)ᵀ) is, in one weight with the others fixed, a parabola whose least point is
Q_nj + ((W − Q)H)_nj / H_jj; rounded to the grid it never raises the loss. QuIP (arXiv 2307.13304) does the
same as its greedy updates. A pass changes few codes, and costs little more than looking at them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy.methods import kernels
from qdeploy.methods.grid import Grid
from qdeploy.methods.hessian import Factor
from qdeploy.quantized import QuantizedLinear


def descend(weight: Tensor, codes: Tensor, grid: Grid, factor: Factor, passes: int) -> Tensor:
    """Codes uint8 [N, K] with no greater loss than `codes` for `weight` float32 [N, K], after some passes."""
    codes = codes.clone(memory_format=torch.contiguous_format)
    if not passes:
        return codes
    rounded = QuantizedLinear(codes, grid.scales, grid.zeros, grid.scheme).dequantize()
    gradient = (weight - rounded) @ factor.damped
    scales, zeros, qmax = grid.scales.float(), grid.offsets(), grid.scheme.qmax
    if kernels.fit_for(weight):
        arrays = [tensor.numpy() for tensor in (factor.damped, gradient, scales, zeros)]
        kernels.over_rows(kernels.descend_rows, len(weight), *arrays, qmax, passes, codes.numpy())
        return codes
    for _ in range(passes):
        descend_columns(factor.damped, gradient, scales, zeros, qmax, codes)
    return codes


def descend_columns(
    h: Tensor, gradient: Tensor, scales: Tensor, zeros: Tensor, qmax: int, codes: Tensor
) -> None:
    """One pass over all rows at a time, for a GPU; arguments as those of `kernels.descend_rows`."""
    width = len(h) // scales.shape[1]
    for j in range(len(h)):
        s, z, old = scales[:, j // width], zeros[:, j // width], codes[:, j].float()
        new = ((old - z + gradient[:, j] / h[j, j] / s).round() + z).clamp(0, qmax)
        codes[:, j] = new.to(torch.uint8)
        gradient.addr_(s * (new - old), h[j], alpha=-1)
