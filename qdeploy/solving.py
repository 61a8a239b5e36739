"""One layer, solved by the method that the recipe names, by all processes together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from qdeploy.assignment import fused_with
from qdeploy.distributed import ALONE, Group
from qdeploy.errors import QuantizationError
from qdeploy.gathered import Gathered
from qdeploy.methods.base import LinearProblem, Quantized, Solution, relative_error
from qdeploy.methods.basis import solve_in
from qdeploy.methods.clipping import clipped
from qdeploy.planned import Plan, Planned
from qdeploy.quantized import QuantizedLinear
from qdeploy.reference_linear import ReferenceLinear
from qdeploy.rounded_inputs import static_scale
from qdeploy.schemes import Scheme
from qdeploy.solved import Solved


def solve_layer(
    name: str,
    linears: Mapping[str, nn.Linear],
    inputs: Gathered | None,
    plan: Plan,
    group: Group,
    s: Tensor | None = None,
) -> Solved:
    """Each process solves its part of the rows; all get the whole. Columns are multiplied by s [K]."""
    planned, scheme = plan[name], plan[name].scheme
    start = time.perf_counter()
    weight = scaled(linears[name], s)
    if planned.needs_all_rows:
        group = ALONE
    rows = group.part(len(weight))
    hessian = inputs.hessian if inputs else None
    lack = inputs.lacks[name].matrix(rows) if inputs and name in inputs.lacks else None
    largest = shared_largest(name, scheme, linears, s)
    problem = LinearProblem(name, weight[rows], hessian, scheme, lack, largest, group)
    own = solved(planned, problem)
    whole = _whole(own.quantized, len(weight), group)
    if isinstance(whole, QuantizedLinear):
        whole = replace(whole, input_scale=_input_scale(name, inputs, scheme, s))
    solution = replace(own, quantized=whole)
    return Solved(solution, time.perf_counter() - start, hessian.tokens if hessian else None)


def solved(planned: Planned, problem: LinearProblem) -> Solution:
    """One layer or part of it, with the largest weights cut off before if the plan says so."""
    if not planned.clips or problem.hessian is None:
        return solve_in(planned.bases, planned.rounder, problem)
    cut = clipped(problem.weight, problem.hessian, problem.scheme)
    own = solve_in(planned.bases, planned.rounder, replace(problem, weight=cut))
    # What was cut off is lost as well.
    return replace(own, relative_error=relative_error(problem, own.quantized))


def shared_largest(
    name: str, scheme: Scheme, linears: Mapping[str, nn.Linear], s: Tensor | None = None
) -> float | None:
    """The largest |w| of the layers that engines run as one with this one, where the scheme asks for it."""
    if not scheme.shared_largest:
        return None
    return max(float(scaled(linears[other], s).abs().amax()) for other in fused_with(name, linears))


def scaled(linear: nn.Linear, s: Tensor | None) -> Tensor:
    """The weight, its columns multiplied by s."""
    weight = linear.weight.detach()
    return weight if s is None else weight * s


def _input_scale(name: str, inputs: Gathered | None, scheme: Scheme, s: Tensor | None) -> Tensor | None:
    """The static scale of a layer's inputs; None where the scheme needs none.

    Raises:
        QuantizationError: no token reached the layer.
    """
    if scheme.activations is None or scheme.activations.dynamic:
        return None
    if inputs is None or inputs.channels is None or not inputs.hessian.tokens:
        raise QuantizationError(
            f"{name}: no calibration token reached it, and {scheme.name} needs the size of its inputs. "
            "Take more --samples, or a scheme that rounds activations by their own size, such as W8A8 or "
            "FP8_DYNAMIC."
        )
    largest = inputs.channels.largest
    return static_scale((largest if s is None else largest / s).amax(), scheme.activations)


def _whole(part: Quantized, rows: int, group: Group) -> Quantized:
    """The layer whose rows the processes have solved in parts."""
    if isinstance(part, ReferenceLinear):
        bits = group.totals(part.bits * len(part.weight))[0] / rows
        return ReferenceLinear(group.join(part.weight, rows), bits)
    zeros = None if part.zeros is None else group.join(part.zeros, rows)
    return replace(
        part, stored=group.join(part.codes, rows), scales=group.join(part.scales, rows), zeros=zeros
    )
