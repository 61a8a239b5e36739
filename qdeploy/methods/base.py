"""What a method is: a config dataclass, and one function from a linear's problem to its solution.

A method is found through the entry point group `qdeploy.methods`, whose value is the config dataclass; the
function is registered beside it with `@rounder(Config)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from qdeploy.distributed import ALONE, Group
from qdeploy.errors import QuantizationError
from qdeploy.methods.hessian import Hessian
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme


@dataclass(frozen=True)
class LinearProblem:
    """One linear layer to quantize, or this process's part of its rows.

    Attributes:
        name: module name, for messages.
        weight: float32 [N, K], N output and K input features.
        hessian: second moment of the layer's inputs; None where the method needs none.
        scheme: the number format to end in; its group size divides K.
        lack: M of `qdeploy.methods.correction`, float32 [N, K]; None where the method does not ask for it or
            the layer does not write to the residual stream.
        group: the processes that hold the other rows. What a method decides for all rows together must come
            from H or from `group.totals`, which is called equally often in every process.
    """

    name: str
    weight: Tensor
    hessian: Hessian | None
    scheme: Scheme
    lack: Tensor | None = None
    group: Group = ALONE


@dataclass(frozen=True)
class Solution:
    """A quantized linear layer and how it came about.

    Attributes:
        quantized: codes, scales and zeros.
        relative_error: tr(ΔHΔᵀ) / tr(WHWᵀ) over the calibration inputs; ‖Δ‖² / ‖W‖² where there are none or
            they are unusable. W is what was rounded, which a method may have corrected before.
        damp: the damping that made H positive definite, as a fraction of its mean diagonal.
        fallback: why something simpler or more cautious than what was asked for was done; None if it was not.
    """

    quantized: QuantizedLinear
    relative_error: float
    damp: float | None = None
    fallback: str | None = None


Config = TypeVar("Config")
Rounder = Callable[[Config, LinearProblem], Solution]


@dataclass(frozen=True)
class _Method:
    round: Rounder[Any]
    needs_hessian: bool
    needs_reference: Callable[[Any], bool]


_METHODS: dict[type, _Method] = {}


def rounder(
    config: type[Config],
    *,
    needs_hessian: bool,
    needs_reference: Callable[[Config], bool] = lambda _: False,
) -> Callable[[Rounder[Config]], Rounder[Config]]:
    """Register the decorated function as the method that `config` configures."""

    def register(function: Rounder[Config]) -> Rounder[Config]:
        _METHODS[config] = _Method(function, needs_hessian, needs_reference)
        return function

    return register


def is_rounder(config: object) -> bool:
    """Whether a stage's config is that of a method that makes codes."""
    return type(config) in _METHODS


def needs_hessian(config: object) -> bool:
    """Whether the method wants the second moment of the layer's inputs."""
    return _METHODS[type(config)].needs_hessian


def needs_reference(config: object) -> bool:
    """Whether the method wants to know what outputs lack beside those of the 16-bit model."""
    return _METHODS[type(config)].needs_reference(config)


def solve(config: object, problem: LinearProblem) -> Solution:
    """Quantize one layer with the method that `config` belongs to.

    Raises:
        QuantizationError: the weight holds NaN or infinity.
    """
    broken = int((~torch.isfinite(problem.weight)).sum())
    if broken:
        raise QuantizationError(
            f"{problem.name}: {broken} of {problem.weight.numel()} weights are NaN or infinite. "
            "The checkpoint is damaged; download it again."
        )
    return _METHODS[type(config)].round(config, problem)


def relative_error(problem: LinearProblem, quantized: QuantizedLinear) -> float:
    """Share of the layer's output energy that the rounding loses, over the rows of all processes.

    See `Solution.relative_error`.
    """
    weight, hessian = problem.weight, problem.hessian
    delta = weight - quantized.dequantize()
    if hessian is not None and hessian.tokens and hessian.finite:
        lost, total = hessian.energy(delta), hessian.energy(weight, roughly=True)
    else:
        lost, total = float(delta.square().sum()), float(weight.square().sum())
    lost, total = problem.group.totals(lost, total)
    return lost / total if total else 0.0
