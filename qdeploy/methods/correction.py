"""Making up for errors that were there before: other weights for layers that write to the residual stream.

What the layers quantized before have done to the stream, a layer that writes to it can partly undo. Where r
is what its output Wx lacks for the stream to be that of the 16-bit model, the least Σ‖r + Wx − W'x‖² is at

    W' = W + c · M(H + λI)⁻¹,   M = (2/n) Σ rxᵀ,   H = (2/n) Σ xxᵀ,

with c = 1 and λ = 0 for the calibration text, and with less of both for any other: it is a regression on what
the calibration happens to hold. W' is then what is rounded. GPTAQ (arXiv 2504.02692) aims at the 16-bit
model's output of the layer alone; here the error in the stream beside it counts too, that of all earlier
blocks among it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy.distributed import Group
from qdeploy.methods.base import LinearProblem
from qdeploy.methods.hessian import Factor, add_product
from qdeploy.stopwatch import part

RIDGE = 0.5
"""λ as a fraction of H's mean diagonal."""


class Lack:
    """M = (2/n) Σ rxᵀ over n tokens, float32 [N, K]: what a layer's output lacks, by what it reads.

    Args:
        out_features, in_features: N and K.
        device: where it is.
        products: as of `Hessian`.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        device: torch.device | str = "cpu",
        products: torch.dtype = torch.float32,
    ) -> None:
        self.tokens, self._products = 0, products
        self._sum = torch.zeros(out_features, in_features, device=device)

    @part("hessian")
    def add(self, r: Tensor, x: Tensor) -> None:
        """Take in what outputs [..., N] lack for inputs [..., K]."""
        r, x = (rows.flatten(0, -2).to(self._sum.device, self._products) for rows in (r, x))
        add_product(self._sum, r.T, x)
        self.tokens += len(x)

    def merge(self, group: Group) -> None:
        """Take in what the other processes of `group` have added."""
        self.tokens = int(group.totals(self.tokens)[0])
        group.add(self._sum)

    def divide(self, s: Tensor) -> None:
        """Make it that of x / s, for powers of two s [K]."""
        self._sum.div_(s)

    def matrix(self, rows: slice) -> Tensor:
        """These rows of M."""
        return self._sum[rows] * (2 / max(self.tokens, 1))


def corrected(problem: LinearProblem, factor: Factor, strength: float) -> Tensor:
    """W' [N, K] for c; W itself where nothing is lacking.

    H is shrunk and damped as it is for the rounding, then λ is added.
    """
    if problem.lack is None:
        return problem.weight
    h = factor.damped.clone()
    h.diagonal().add_(RIDGE * h.diagonal().mean())
    lower = torch.linalg.cholesky(h)
    return problem.weight + strength * torch.cholesky_solve(problem.lack.T, lower).T
