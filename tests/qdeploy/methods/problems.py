"""Layers and correlated inputs for the methods' tests."""

from __future__ import annotations

import torch
from torch import Tensor

from qdeploy.methods.base import LinearProblem
from qdeploy.methods.hessian import Hessian
from qdeploy.schemes import Scheme

N, K = 24, 64


def weights(n: int = N, k: int = K, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(tokens: int = 512, k: int = K, seed: int = 1) -> Tensor:
    """Inputs in which a few directions carry most of the energy, as in a real network."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(k, k, generator=generator) * torch.logspace(0, -2, k)
    return torch.randn(tokens, k, generator=generator) @ mixing.T


def hessian_of(x: Tensor) -> Hessian:
    hessian = Hessian(x.shape[-1])
    hessian.add(x)
    return hessian


def identity_hessian(k: int = K) -> Hessian:
    return hessian_of(torch.eye(k) * (k / 2) ** 0.5)


def problem(scheme: Scheme, weight: Tensor | None = None, x: Tensor | None = None) -> LinearProblem:
    weight = weights() if weight is None else weight
    x = correlated_inputs(k=weight.shape[1]) if x is None else x
    return LinearProblem("layer", weight, hessian_of(x), scheme)


def scheme(bits: int = 4, group: int | None = 32, symmetric: bool = True) -> Scheme:
    return Scheme(f"W{bits}A16", bits, group, symmetric)
