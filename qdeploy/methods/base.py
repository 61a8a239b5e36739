"""What a method is: a config dataclass, and one function from a linear's problem to its solution.

A method is found through the entry point group `qdeploy.methods`, whose value is the config dataclass; the
function is registered beside it with `@rounder(Config)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from qdeploy.distributed import ALONE, Group
from qdeploy.errors import QuantizationError
from qdeploy.methods.hessian import Hessian
from qdeploy.quantized import QuantizedLinear
from qdeploy.reference_linear import ReferenceLinear, portable
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
        largest: |w| of all layers that engines run as one, all their rows; None if there are no others.
        group: the processes that hold the other rows. What a method decides for all rows together must come
            from H or from `group.totals`, which is called equally often in every process.
    """

    name: str
    weight: Tensor
    hessian: Hessian | None
    scheme: Scheme
    lack: Tensor | None = None
    largest: float | None = None
    group: Group = ALONE


@dataclass(frozen=True)
class Solution:
    """A quantized linear layer and how it came about.

    Attributes:
        quantized: codes, scales and zeros, or a 16-bit weight.
        relative_error: tr(ΔHΔᵀ) / tr(WHWᵀ) over the calibration inputs; ‖Δ‖² / ‖W‖² where there are none or
            they are unusable. W is what was rounded, which a method may have corrected before.
        damp: the damping that made H positive definite, as a fraction of its mean diagonal.
        fallback: why something simpler or more cautious than what was asked for was done; None if it was not.
    """

    quantized: Quantized
    relative_error: float
    damp: float | None = None
    fallback: str | None = None


Quantized = QuantizedLinear | ReferenceLinear
"""What a layer becomes: codes in a number format that engines know, or what other methods come to."""

Config = TypeVar("Config")
Rounder = Callable[[Config, LinearProblem], Solution]


@dataclass(frozen=True)
class Registered:
    """A rounder's function, and what it wants to know of the layer beside its weight."""

    round: Rounder[Any]
    needs_hessian: bool
    needs_reference: Callable[[Any], bool]
    without_kernel: Callable[[Any], str | None]
    refusal: Callable[[Scheme], str | None]
    needs_all_rows: bool


ROUNDERS: dict[type, Registered] = {}
"""Config class → its method."""


def rounder(
    config: type[Config],
    *,
    needs_hessian: bool,
    needs_reference: Callable[[Config], bool] = lambda _: False,
    without_kernel: Callable[[Config], str | None] = lambda _: None,
    refusal: Callable[[Scheme], str | None] = lambda _: None,
    needs_all_rows: bool = False,
) -> Callable[[Rounder[Config]], Rounder[Config]]:
    """Register the decorated function as the method that `config` configures.

    Args:
        config: the config dataclass.
        needs_hessian: whether the function looks at `LinearProblem.hessian`. Without it the method runs on
            weights alone, and no calibration text is read unless another stage needs it.
        needs_reference: whether, so configured, it looks at `LinearProblem.lack`.
        without_kernel: why no engine runs what it makes, so configured, and its layers are stored
            dequantized; None where some does.
        refusal: why the method cannot end in a number format, and what to do; None where it can.
        needs_all_rows: whether a row's codes depend on the others, so that processes cannot share them out.
    """

    def register(function: Rounder[Config]) -> Rounder[Config]:
        ROUNDERS[config] = Registered(
            function, needs_hessian, needs_reference, without_kernel, refusal, needs_all_rows
        )
        return function

    return register


def is_rounder(config: object) -> bool:
    """Whether a stage's config is that of a method that makes codes."""
    return type(config) in ROUNDERS


def needs_hessian(config: object) -> bool:
    """Whether the method wants the second moment of the layer's inputs."""
    return ROUNDERS[type(config)].needs_hessian


def needs_reference(config: object) -> bool:
    """Whether the method wants to know what outputs lack beside those of the 16-bit model."""
    return ROUNDERS[type(config)].needs_reference(config)


def without_kernel(config: object) -> str | None:
    """Why no engine runs what the method makes; None if some does."""
    return ROUNDERS[type(config)].without_kernel(config)


def refusal(config: object, scheme: Scheme) -> str | None:
    """Why the method cannot end in the number format; None where it can."""
    return ROUNDERS[type(config)].refusal(scheme)


def needs_all_rows(config: object) -> bool:
    """Whether processes cannot share out a layer's rows."""
    return ROUNDERS[type(config)].needs_all_rows


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
    solution = ROUNDERS[type(config)].round(config, problem)
    if without_kernel(config) is None or isinstance(solution.quantized, ReferenceLinear):
        return solution
    # A fallback of such a method has codes, but is stored as its other layers are.
    found = solution.quantized
    return replace(solution, quantized=ReferenceLinear(portable(found.dequantize()), found.bits))


def relative_error(problem: LinearProblem, quantized: Quantized) -> float:
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
