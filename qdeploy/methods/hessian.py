"""The second moment of a layer's inputs, and GPTQ's factorization of it (arXiv 2210.17323, section 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qdeploy.distributed import Group
from qdeploy.methods.hadamard import Orthogonal
from qdeploy.stopwatch import part

Order = Literal["forward", "backward", "driven"]
"""Which columns are rounded first: the first, the last, or those with the largest inputs."""

LARGEST_DAMP = 1.0
"""Beyond this the identity outweighs H and the result is rounding to nearest."""

STRIP = 384
"""Only the upper triangle is accumulated, in strips of this height: for 512 tokens, 1536 columns and bfloat16
2.6 ms, with strips of 128 3.0 ms, and 3.4 ms without."""

LEAF = 128
"""Columns of a triangle that is inverted at once; a larger one by its quarters."""

CHUNK = 512
"""Tokens that are taken in at once: more of them leave the processor's cache between two strips."""

NOISE = 8.0
"""Units of rounding error by which a pivot of the factorization must exceed zero."""


@dataclass(frozen=True)
class Factor:
    """H⁻¹ = UᵀU in the order in which columns are rounded.

    Attributes:
        lower: float32 [K, K], Uᵀ.
        order: int64 [K], columns in the order of rounding.
        damp: the fraction of H's mean diagonal that was added to it.
        damped: float32 [K, K], H shrunk and damped, columns in their own order.
    """

    lower: Tensor
    order: Tensor
    damp: float
    damped: Tensor

    @property
    def upper(self) -> Tensor:
        """U, float32 [K, K], upper triangular."""
        return self.lower.T

    @property
    def importance(self) -> Tensor:
        """What an error costs that later columns make up for as well as they can: 1/U_jj², float32 [K]."""
        costs = torch.empty_like(self.lower.diagonal())
        costs[self.order] = self.lower.diagonal().square().reciprocal()
        return costs


class Hessian:
    """H = (2/n) Σ xᵀx over n tokens, summed in float32; shared by all linears that read the same input.

    Args:
        in_features: K.
        device: where it is.
        products: the number format of the inputs in xᵀx, and of its entries for CHUNK tokens; see
            `qdeploy.modeling.products`.
    """

    def __init__(
        self,
        in_features: int,
        device: torch.device | str = "cpu",
        products: torch.dtype = torch.float32,
    ) -> None:
        self.tokens, self._products = 0, products
        self._sum = torch.zeros(in_features, in_features, device=device)
        self._mirrored = True
        self._factors: dict[tuple[float, float, Order], Factor | None] = {}

    @part("hessian")
    def add(self, x: Tensor) -> None:
        """Take in a batch of inputs [..., K] of any floating type."""
        rows = x.reshape(-1, x.shape[-1]).to(self._sum.device, self._products)
        for chunk in torch.split(rows, CHUNK):
            for start in range(0, len(self._sum), STRIP):
                strip = slice(start, start + STRIP)
                add_product(self._sum[strip, start:], chunk[:, strip].T, chunk[:, start:])
        self._mirrored = False
        self.tokens += len(rows)
        self._factors.clear()

    def divide(self, s: Tensor) -> None:
        """Make it that of x / s: H ← S⁻¹HS⁻¹, exact for powers of two s [K]."""
        self._sum.div_(s).div_(s.unsqueeze(1))
        self._factors.clear()

    def turned(self, v: Orthogonal, d: Tensor) -> Hessian:
        """That of Vᵀ(x / d): H ← VᵀD⁻¹HD⁻¹V, for scales d [K]."""
        found = Hessian(len(self._sum), self._sum.device, self._products)
        scaled = (self.matrix * (max(self.tokens, 1) / 2)).double() / d / d.unsqueeze(1)
        found._sum, found.tokens = v.turn_rows(v.turn(scaled)).float(), self.tokens
        return found

    def merge(self, group: Group) -> None:
        """Take in what the other processes of `group` have added, so that H is over the tokens of all."""
        self.tokens = int(group.totals(self.tokens)[0])
        for start in range(0, len(self._sum), STRIP):
            strip = self._sum[start : start + STRIP, start:]
            whole = strip.contiguous()
            group.add(whole)
            strip.copy_(whole)
        self._mirrored = False
        self._factors.clear()

    @property
    def matrix(self) -> Tensor:
        """H, float32 [K, K]."""
        if not self._mirrored:
            for start in range(0, len(self._sum), STRIP):
                strip, rest = slice(start, start + STRIP), slice(start + STRIP, None)
                self._sum[rest, strip] = self._sum[strip, rest].T
                # Computed whole, but not alike to the last bit.
                own = self._sum[strip, strip]
                own.copy_(own.triu() + own.triu(1).T)
            self._mirrored = True
        return self._sum * (2 / max(self.tokens, 1))

    def energy(self, weight: Tensor, *, roughly: bool = False) -> float:
        """tr(WHWᵀ) for W float32 [N, K], from the upper triangle alone: half the work of the product.

        With `roughly` it is multiplied in the format of the inputs. What is left where H's large directions
        cancel, as they do in what GPTQ loses, would be noise then.
        """
        total, dtype = 0.0, self._products if roughly else torch.float32
        for start in range(0, len(self._sum), STRIP):
            strip = slice(start, start + STRIP)
            h = self._sum[strip, start:]
            products = (weight[:, strip].to(dtype) @ h.to(dtype)).float().mul_(weight[:, start:])
            total += float(2 * products.sum() - products[:, :STRIP].sum())
        return total * (2 / max(self.tokens, 1))

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of H, float32 [K]: how strongly each input column is driven."""
        return self._sum.diagonal() * (2 / max(self.tokens, 1))

    @property
    def dead(self) -> int:
        """How many columns no token ever drove."""
        return int((self._sum.diagonal() == 0).sum())

    @property
    def finite(self) -> bool:
        """False once an input held NaN or infinity."""
        return _finite(self._sum)

    @property
    def share(self) -> float:
        """How far it can be trusted: from 0 with no token to 1 from as many tokens as columns on.

        The error of a covariance that n tokens give goes with √(K/n); see the table in docs/experts.md.
        """
        return math.sqrt(min(1.0, self.tokens / len(self.diagonal)))

    def factor(self, damp: float, shrinkage: float, order: Order) -> Factor | None:
        """Factorize H⁻¹, once for all linears that share this input.

        Args:
            damp: fraction of the mean diagonal added to the diagonal; grown tenfold while H is not positive
                definite, up to LARGEST_DAMP.
            shrinkage: H ← (1 − shrinkage)·H + shrinkage·diag(H).
            order: in which columns will be rounded.

        Returns:
            The factor, or None where no damping makes H positive definite.
        """
        key = (damp, shrinkage, order)
        if key not in self._factors:
            self._factors[key] = self._factorize(*key)
        return self._factors[key]

    def _factorize(self, damp: float, shrinkage: float, order: Order) -> Factor | None:
        if not self.finite:
            return None
        diagonal, dead = self.diagonal, self.diagonal == 0
        mean = diagonal.sum() / (~dead).sum() if self.dead < len(dead) else torch.ones_like(diagonal[0])
        h = self.matrix.mul_(1 - shrinkage)
        # A dead column is independent of all others: with any positive diagonal it is rounded to nearest.
        h.diagonal().copy_(torch.where(dead, mean, diagonal))
        columns = _ordered(diagonal, order)
        for tried, dtype in _attempts(damp):
            damped = h.to(dtype, copy=True)
            damped.diagonal().add_(tried * mean)
            lower = _transposed_inverse_cholesky(damped, columns)
            if lower is not None:
                return Factor(lower.float(), columns, tried, damped.float())
        return None


def _ordered(diagonal: Tensor, order: Order) -> Tensor:
    """Columns, int64 [K], of an H with this diagonal [K]; of equally driven ones the first comes first."""
    if order == "driven":
        return torch.argsort(diagonal, descending=True, stable=True)
    columns = torch.arange(len(diagonal), device=diagonal.device)
    return columns if order == "forward" else columns.flip(0)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += ab, of a and b in float32 or bfloat16, total in float32."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def _finite(matrix: Tensor) -> bool:
    """Whether no entry is NaN or infinite; extremes are found four times as fast as entries are looked at."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(matrix))).all())


def _attempts(damp: float) -> Iterator[tuple[float, torch.dtype]]:
    """Dampings to try; each in float64 too, since rounding errors alone can make H indefinite."""
    while damp <= LARGEST_DAMP:
        yield damp, torch.float32
        yield damp, torch.float64
        damp *= 10


def _transposed_inverse_cholesky(h: Tensor, order: Tensor) -> Tensor | None:
    """Uᵀ with UᵀU = h⁻¹ and U upper triangular, rows and columns of h in this order.

    Factorizing h from its last row up, h = RRᵀ with R upper triangular, gives U = R⁻¹ with one Cholesky and
    one triangular inverse instead of inverting h between two Choleskys.

    Returns:
        Uᵀ, or None if h is not positive definite beyond rounding errors.
    """
    reverse = order.flip(0)
    h = h[reverse.unsqueeze(1), reverse]
    lower, info = torch.linalg.cholesky_ex(h)
    # What is left of a diagonal entry after cancellation may be noise that happens to be positive.
    noise = NOISE * torch.finfo(h.dtype).eps * h.diagonal()
    if info.item() or bool((lower.diagonal().square() <= noise).any()):
        return None
    # One matrix takes the place of the other: each is as large as the Hessian.
    del h
    _invert(lower)
    return lower.T.flip(0, 1).contiguous() if _finite(lower) else None


def _invert(lower: Tensor) -> None:
    """Put the inverse of a lower triangle [K, K] in its place, with a third of a matrix product's work."""
    columns = len(lower)
    if columns <= LEAF:
        identity = torch.eye(columns, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = columns // (2 * LEAF) * LEAF or LEAF
    top, bottom, corner = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert(top)
    _invert(bottom)
    corner.copy_(bottom @ (corner @ top)).neg_()
