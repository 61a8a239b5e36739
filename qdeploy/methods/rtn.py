"""Round to nearest: every weight to the closest value of its group's grid, no calibration data."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from qdeploy.methods.base import LinearProblem, Solution, relative_error, rounder
from qdeploy.methods.grid import fit, search


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RTN:
    """Round to nearest."""

    grid: Annotated[
        bool,
        Field(description="Search each scale for the least squared error instead of spanning the range."),
    ] = False


@rounder(RTN, needs_hessian=False)
def round_to_nearest(config: RTN, problem: LinearProblem) -> Solution:
    """Quantize one layer by rounding to nearest."""
    weight, scheme, largest = problem.weight, problem.scheme, problem.largest
    grid = search(weight, scheme, largest=largest) if config.grid else fit(weight, scheme, largest)
    quantized = grid.nearest(weight)
    return Solution(quantized, relative_error(problem, quantized))
