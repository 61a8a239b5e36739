"""Changes of basis: transforms after which a layer is rounded in coordinates that no engine knows.

With orthogonal U and V a layer computes Wx = U(UᵀWV)(Vᵀx). The matrix in the middle is what is rounded, on
the Hessian of Vᵀx, which is VᵀHV; what the layer then computes is U Ŵ Vᵀ, and is stored so, dequantized.

A method is registered beside its config dataclass with `@basis(Config)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from qdeploy.methods.base import LinearProblem, Solution, solve
from qdeploy.reference_linear import ReferenceLinear, portable

WITHOUT_KERNEL = "engines have no kernel that turns a layer's inputs and outputs into another basis"


@dataclass(frozen=True)
class Turned:
    """A layer in another basis.

    Attributes:
        problem: the layer there.
        back: of a weight float32 [N, K] there, what it is here.
    """

    problem: LinearProblem
    back: Callable[[Tensor], Tensor]


Config = TypeVar("Config")
Basis = Callable[[Config, LinearProblem], Turned]

BASES: dict[type, Basis[Any]] = {}
"""Config class → its method."""


def basis(config: type[Config]) -> Callable[[Basis[Config]], Basis[Config]]:
    """Register the decorated function: it puts a layer into another basis."""

    def register(function: Basis[Config]) -> Basis[Config]:
        BASES[config] = function
        return function

    return register


def solve_in(bases: Sequence[object], rounder: object, problem: LinearProblem) -> Solution:
    """Quantize one layer in the basis that the methods of some configs lead to, one after the other.

    Raises:
        QuantizationError: as `solve`.
    """
    if not bases:
        return solve(rounder, problem)
    turned = BASES[type(bases[0])](bases[0], problem)
    found = solve_in(bases[1:], rounder, turned.problem)
    weight = portable(turned.back(found.quantized.dequantize()))
    return replace(found, quantized=ReferenceLinear(weight, found.quantized.bits))
