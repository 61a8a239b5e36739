"""What every rounder must hold to."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from qdeploy.levels import nearest_float
from qdeploy.methods.base import (
    LinearProblem,
    Solution,
    needs_all_rows,
    needs_hessian,
    refusal,
    relative_error,
    solve,
)
from qdeploy.methods.grid import by_shared_rows
from qdeploy.quantized import SMALLEST_SCALE, QuantizedLinear
from qdeploy.schemes import E4M3, Scheme
from qdeploy.testing.halves import solve_halves
from qdeploy.testing.problems import SCHEMES, hard_layers, linear_problem


def check_rounder(config: object) -> None:
    """Check the method that `config` configures.

    Whatever the layer, and the number format unless it is refused: codes, scales and zeros are such as
    formats hold, without NaN, and the error told is theirs; the problem is left as it was; the same problem
    has the same codes; and two processes with half of the rows each lose what one with all of them loses.

    Raises:
        AssertionError: it is not so.
    """
    schemes = [scheme for scheme in SCHEMES if refusal(config, scheme) is None]
    assert schemes, "it refuses every number format that is tried"
    for scheme in schemes:
        for what, problem in hard_layers(scheme, with_data=needs_hessian(config)):
            _check(f"{scheme.describe()}, {what}", config, problem)
        if scheme.rows != 1 or needs_all_rows(config):
            continue  # such rows are not shared out
        whole = linear_problem(scheme)
        expected = solve(config, whole).relative_error
        for half in solve_halves(config, whole):
            close = math.isclose(half.relative_error, expected, rel_tol=0.01)
            told = f"two processes lose {half.relative_error:.4g}, one alone loses {expected:.4g}"
            assert close, f"{scheme.describe()}: {told}; let what all rows decide go through group.totals"


def _check(where: str, config: object, problem: LinearProblem) -> None:
    weight, hessian = problem.weight.clone(), copy.deepcopy(problem.hessian)
    found, again = (solve(config, problem) for _ in range(2))
    assert torch.equal(weight, problem.weight), f"{where}: the weight was written to; work on a clone"
    if hessian is not None and problem.hessian is not None:
        same = torch.equal(hessian.matrix.nan_to_num(), problem.hessian.matrix.nan_to_num())
        assert same, f"{where}: the Hessian was written to; other layers read it too"
    if isinstance(found.quantized, QuantizedLinear):
        _check_quantized(where, problem, found.quantized)
    weights = [solution.quantized.dequantize() for solution in (found, again)]
    assert bool(weights[0].isfinite().all()), f"{where}: a code stands for NaN"
    assert torch.equal(*weights), f"{where}: other codes the second time"
    _check_error(where, problem, found)


def _check_error(where: str, problem: LinearProblem, found: Solution) -> None:
    told, own = found.relative_error, relative_error(problem, found.quantized)
    plain = relative_error(LinearProblem(problem.name, problem.weight, None, problem.scheme), found.quantized)
    right = any(math.isclose(told, error, rel_tol=0.01, abs_tol=1e-6) for error in (own, plain))
    assert right, f"{where}: relative_error is {told:.3g}, but its codes lose {own:.3g}"


def _check_quantized(where: str, problem: LinearProblem, found: QuantizedLinear) -> None:
    """Number formats of codes, scales and zeros."""
    scheme, (n, k) = problem.scheme, problem.weight.shape
    grouped = (n, scheme.groups(k))
    assert found.scheme == scheme, f"{where}: ends in {found.scheme.describe()}"
    _check_tensor(f"{where}: codes", found.codes, torch.uint8, (n, k))
    assert int(found.codes.max()) <= scheme.qmax, f"{where}: code {int(found.codes.max())} > {scheme.qmax}"
    _check_tensor(f"{where}: scales", found.scales, torch.bfloat16, grouped)
    _check_scales(where, found.scales.float(), scheme)
    zeros = scheme.element is None and not scheme.symmetric
    assert (found.zeros is not None) == zeros, f"{where}: zeros are for asymmetric schemes alone"
    if found.zeros is not None:
        _check_tensor(f"{where}: zeros", found.zeros, torch.uint8, grouped)
        assert int(found.zeros.max()) <= scheme.qmax, f"{where}: a zero point is above {scheme.qmax}"


def _check_scales(where: str, scales: Tensor, scheme: Scheme) -> None:
    """Whether the format can store them."""
    least = SMALLEST_SCALE if scheme.steps == "bfloat16" else 0.0
    usable = bool((scales.isfinite() & (scales > 0) & (scales >= least)).all())
    assert usable, f"{where}: a scale is NaN, infinite or too small; use portable_scales"
    stored = {
        "bfloat16": lambda: scales,
        "e8m0": lambda: scales.log2().round().exp2(),
        "e4m3": lambda: nearest_float(scales.clone(), E4M3),
    }[scheme.steps]()
    assert torch.equal(scales, stored), f"{where}: {scheme.steps} does not hold all scales"
    shared = torch.equal(scales, by_shared_rows(scales, scheme.rows, torch.amax))
    assert shared, f"{where}: rows that share scales differ in them"


def _check_tensor(what: str, found: Tensor, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    right = found.dtype == dtype and tuple(found.shape) == shape
    assert right, f"{what} are {found.dtype} {list(found.shape)}, not {dtype} {list(shape)}"
