"""Orthogonal matrices that spread every channel over all: randomized Hadamard matrices of almost any order.

A Hadamard matrix has entries ±1 and orthogonal rows, H·Hᵀ = n·I. Sylvester's have the orders 2^k, Paley's
(J. Math. Phys. 12, 1933) q + 1 for a prime q = 3 mod 4 and 2(q + 1) for one that is 1 mod 4, and the
Kronecker product of two is another one: 576 = 16·36, 3584 = 128·28, 5120 = 256·20. Orders that have none,
such as odd ones, take a random orthogonal matrix for the odd factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Orthogonal:
    """Q [n, n] = diag(signs)·(left ⊗ right): a vector is turned in n·(a + b) steps rather than n².

    Attributes:
        signs: float64 [n], ±1.
        left: float64 [a, a], orthogonal.
        right: float64 [b, b], orthogonal; a·b = n.
    """

    signs: Tensor
    left: Tensor
    right: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """x·Q of each n values in turn, for x float64 [..., m·n]."""
        a, b = len(self.left), len(self.right)
        rows = (x.reshape(-1, a * b) * self.signs).reshape(-1, a, b)
        return (self.left.T @ (rows @ self.right)).reshape(x.shape)

    def turn_rows(self, x: Tensor) -> Tensor:
        """Qᵀ·x of each n rows in turn, for x float64 [m·n, K]."""
        a, b = len(self.left), len(self.right)
        signed = x.reshape(-1, a * b, x.shape[-1]) * self.signs[:, None]
        halfway = self.left.T @ signed.reshape(len(signed), a, -1)
        return (self.right.T @ halfway.reshape(len(signed), a, b, -1)).reshape(x.shape)


def random_hadamard(n: int, generator: torch.Generator) -> Orthogonal:
    """An orthogonal matrix of order n with random signs; all its entries are ±1/√n where that can be."""
    signs = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    right = _odd_factor(n, generator)
    # Two factors of about the same size are the fastest.
    while len(right) ** 2 < n and n % (2 * len(right)) == 0:
        right = torch.kron(sylvester(2), right)
    left = sylvester(n // len(right))
    return Orthogonal(signs, left / len(left) ** 0.5, right / right[0].norm())


def sylvester(order: int) -> Tensor:
    """The Hadamard matrix of an order 2^k, float64."""
    matrix, two = torch.ones(1, 1).double(), torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()
    while len(matrix) < order:
        matrix = torch.kron(two, matrix)
    return matrix


def paley(order: int) -> Tensor | None:
    """Paley's Hadamard matrix of that order, float64; None where a field of prime order gives none."""
    if _is_prime(order - 1) and order % 4 == 0:
        skew = _bordered(order - 1, -1.0)
        return skew + torch.eye(order).double()
    half = order // 2
    if order % 4 == 0 and half % 4 == 2 and _is_prime(half - 1):
        conference, identity = _bordered(half - 1, 1.0), torch.eye(half).double()
        ones = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()
        turned = torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).double()
        return torch.kron(conference, ones) + torch.kron(identity, turned)
    return None


def _odd_factor(n: int, generator: torch.Generator) -> Tensor:
    """What Sylvester's matrices leave of order n: m × m with n = m·2^k and orthogonal rows of one length."""
    odd = n // (n & -n)
    if odd == 1:
        return torch.ones(1, 1).double()
    order = 4 * odd
    while n % order == 0:
        found = paley(order)
        if found is not None:
            return found
        order *= 2
    q: Tensor = torch.linalg.qr(torch.randn(odd, odd, generator=generator, dtype=torch.float64))[0]
    return q


def _bordered(q: int, corner: float) -> Tensor:
    """[[0, 1ᵀ], [±1, S]] with S_ij = χ(j − i), χ the quadratic character of the field of prime order q."""
    squares = torch.zeros(q).double() - 1
    squares[torch.arange(1, q) ** 2 % q] = 1
    squares[0] = 0
    places = torch.arange(q)
    matrix = torch.ones(q + 1, q + 1).double()
    matrix[1:, 1:] = squares[(places[None] - places[:, None]) % q]
    matrix[1:, 0], matrix[0, 0] = corner, 0
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))
