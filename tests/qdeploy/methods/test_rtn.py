from __future__ import annotations

import pytest
import torch

from qdeploy.errors import QuantizationError
from qdeploy.methods.base import LinearProblem, needs_hessian, solve
from qdeploy.methods.rtn import RTN
from tests.qdeploy.methods.problems import problem, scheme, weights


def test_every_code_is_the_nearest_one() -> None:
    found = solve(RTN(), problem(scheme())).quantized
    error = (found.dequantize() - weights()).abs()
    for step in (-1, 1):
        codes = (found.codes.int() + step).clamp(0, 15).to(torch.uint8)
        moved = type(found)(codes, found.scales, found.zeros, found.scheme).dequantize()
        assert ((moved - weights()).abs() >= error - 1e-6).all()


def test_error_is_of_the_weights_alone_without_calibration() -> None:
    assert not needs_hessian(RTN())
    solution = solve(RTN(), LinearProblem("layer", weights(), None, scheme()))
    delta = weights() - solution.quantized.dequantize()
    assert solution.relative_error == pytest.approx(float(delta.square().sum() / weights().square().sum()))


def test_error_is_of_the_weights_alone_where_inputs_are_broken() -> None:
    x = torch.ones(8, 64)
    x[2, 3] = torch.nan
    alone = solve(RTN(), LinearProblem("layer", weights(), None, scheme())).relative_error
    assert solve(RTN(), problem(scheme(), x=x)).relative_error == alone


def test_grid_search_lowers_the_error() -> None:
    asked = LinearProblem("layer", weights(), None, scheme(3))
    assert solve(RTN(grid=True), asked).relative_error < solve(RTN(), asked).relative_error


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_weights_are_refused_with_the_layer_and_their_number(bad: float) -> None:
    weight = weights()
    weight[3, 4] = bad
    with pytest.raises(QuantizationError, match=r"layer: 1 of 1536 weights are NaN or infinite"):
        solve(RTN(), problem(scheme(), weight))


def test_a_layer_of_zeros_has_no_error() -> None:
    solution = solve(RTN(), problem(scheme(), torch.zeros(4, 64)))
    assert solution.relative_error == 0
    assert not solution.quantized.dequantize().any()
