from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qdeploy.methods.base import LinearProblem, Solution, needs_hessian, relative_error, solve
from qdeploy.methods.columns import round_columns
from qdeploy.methods.gptq import GPTQ
from qdeploy.methods.grid import search
from qdeploy.methods.hessian import Factor, Hessian
from qdeploy.methods.rtn import RTN
from qdeploy.schemes import Scheme
from tests.qdeploy.methods.problems import (
    correlated_inputs,
    hessian_of,
    identity_hessian,
    problem,
    scheme,
    weights,
)

SCHEMES = [
    scheme(bits, group, symmetric)
    for bits in (2, 3, 4, 8)
    for group in (32, None)
    for symmetric in (True, False)
]


def test_two_columns_equal_the_closed_form() -> None:
    """The second column moves to w2 + (w1 − q1)·H12/H22, the least-squares answer to the first's error."""
    weight = torch.tensor([[0.74, -1.0], [0.31, 0.9], [-0.66, 0.2]])
    x = torch.tensor([[1.0, 0.5], [-2.0, 0.3], [0.7, 1.1], [0.2, -0.4]])
    hessian = hessian_of(x)
    config = GPTQ(damp=1e-6, shrinkage=0.0, act_order=False, grid=False, passes=0)
    found = solve(config, LinearProblem("layer", weight, hessian, scheme(4, None))).quantized
    s, h = found.scales.float()[:, 0], hessian.matrix

    def nearest(w: torch.Tensor) -> torch.Tensor:
        return s * (w / s).round().clamp(-8, 7)

    first = nearest(weight[:, 0])
    second = nearest(weight[:, 1] + (weight[:, 0] - first) * h[0, 1] / h[1, 1])
    assert torch.equal(found.dequantize(), torch.stack([first, second], 1))
    assert not torch.equal(second, nearest(weight[:, 1]))


def test_columns_equal_the_paper_done_step_by_step() -> None:
    """Algorithm 1 without any batching, in float64, over more columns than one leaf."""
    asked = problem(scheme(4, 32))
    assert asked.hessian is not None
    factor = asked.hessian.factor(GPTQ().damp, GPTQ().shrinkage, "driven")
    assert factor is not None
    grid = search(asked.weight, asked.scheme, factor.importance)
    found = round_columns(asked.weight, grid, factor)
    w, u = asked.weight.double(), factor.upper.double()
    codes = torch.empty_like(w)
    for step, j in enumerate(factor.order.tolist()):
        s = grid.scales[:, j // 32].double()
        codes[:, j] = (w[:, j] / s).round().add(8).clamp(0, 15)
        e = (w[:, j] - s * (codes[:, j] - 8)) / u[step, step]
        w[:, factor.order[step:]] -= e[:, None] * u[step, step:]
    assert (codes.to(torch.uint8) == found.codes).float().mean() > 0.999


def losses(asked: LinearProblem, factor: Factor, found: Solution) -> torch.Tensor:
    """(w − q)H(w − q)ᵀ of each row, for the H that GPTQ works with."""
    delta = asked.weight - found.quantized.dequantize()
    return ((delta @ factor.damped) * delta).sum(1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_second_grid_and_passes_of_descent_each_lower_the_loss(symmetric: bool) -> None:
    asked = problem(scheme(3, 32, symmetric), weights(96))
    assert asked.hessian is not None
    factor = asked.hessian.factor(GPTQ().damp, GPTQ().shrinkage, "driven")
    assert factor is not None
    once = round_columns(asked.weight, search(asked.weight, asked.scheme, factor.importance), factor).losses
    twice = losses(asked, factor, solve(GPTQ(passes=0), asked))
    assert (twice <= 1.001 * once).all()
    assert twice.sum() < 0.99 * once.sum()
    descended = losses(asked, factor, solve(GPTQ(), asked))
    assert (descended <= 1.001 * twice).all()
    assert descended.sum() < 0.99 * twice.sum()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_beats_rounding_on_correlated_inputs(scheme: Scheme) -> None:
    asked = problem(scheme)
    nearest = solve(RTN(grid=True), asked).relative_error
    assert solve(GPTQ(), asked).relative_error < 0.8 * nearest
    assert solve(GPTQ(shrinkage=0.0), asked).relative_error < 0.6 * nearest


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_is_rounding_where_inputs_are_uncorrelated(scheme: Scheme) -> None:
    asked = LinearProblem("layer", weights(), identity_hessian(), scheme)
    found, nearest = solve(GPTQ(grid=False), asked), solve(RTN(), asked)
    assert torch.equal(found.quantized.codes, nearest.quantized.codes)
    assert torch.equal(found.quantized.scales, nearest.quantized.scales)


def test_shrinkage_helps_on_inputs_of_another_kind() -> None:
    def error(shrinkage: float) -> float:
        found = solve(GPTQ(shrinkage=shrinkage), problem(scheme(3))).quantized
        return relative_error(problem(scheme(3), x=correlated_inputs(seed=5)), found)

    assert error(0.3) < error(0.0)


def test_dead_columns_are_rounded_to_nearest_and_harm_no_other() -> None:
    x = correlated_inputs()
    x[:, [0, 7, 40]] = 0
    found = solve(GPTQ(grid=False), problem(scheme(), x=x))
    nearest = solve(RTN(), problem(scheme(), x=x))
    assert found.fallback is None
    assert torch.equal(found.quantized.codes[:, [0, 7, 40]], nearest.quantized.codes[:, [0, 7, 40]])
    assert found.relative_error < nearest.relative_error


def test_inputs_that_are_all_zero_end_in_rounding() -> None:
    found = solve(GPTQ(), problem(scheme(), x=torch.zeros(8, 64)))
    assert torch.equal(found.quantized.codes, solve(RTN(grid=True), problem(scheme())).quantized.codes)


def test_one_token_is_enough_not_to_crash() -> None:
    found = solve(GPTQ(), problem(scheme(), x=correlated_inputs(tokens=1)))
    assert "only 1 calibration tokens" in str(found.fallback)
    assert found.quantized.scales.isfinite().all()


def indefinite_hessian() -> Hessian:
    hessian = identity_hessian()
    hessian._sum.fill_(1e3).fill_diagonal_(1.0)
    return hessian


def broken_hessian() -> Hessian:
    x = correlated_inputs()
    x[0, 0] = torch.nan
    return hessian_of(x)


@pytest.mark.parametrize(
    ("hessian", "reason"),
    [
        (indefinite_hessian(), "not positive definite (0 of 64 columns dead, 64 tokens"),
        (broken_hessian(), "inputs hold NaN or infinity (512 tokens)"),
        (Hessian(64), "no calibration token reached it"),
        (None, "no calibration token reached it"),
    ],
)
def test_an_unusable_hessian_falls_back_to_rounding_and_says_so(hessian: Hessian | None, reason: str) -> None:
    found = solve(GPTQ(), LinearProblem("layer", weights(), hessian, scheme()))
    assert found.fallback is not None
    assert found.fallback.startswith("gptq: layer: ")
    assert reason in found.fallback
    expected = solve(RTN(grid=True), LinearProblem("layer", weights(), None, scheme()))
    assert torch.equal(found.quantized.codes, expected.quantized.codes)
    assert found.relative_error == expected.relative_error


def test_the_damping_that_was_used_is_reported() -> None:
    assert solve(GPTQ(damp=0.05), problem(scheme())).damp == 0.05
    assert needs_hessian(GPTQ())


def test_the_result_is_the_same_every_time() -> None:
    first, second = (solve(GPTQ(), problem(scheme())) for _ in range(2))
    assert torch.equal(first.quantized.codes, second.quantized.codes)
    assert first.relative_error == second.relative_error


def test_rows_of_zeros_and_outliers_leave_all_values_finite() -> None:
    weight = weights()
    weight[0], weight[1, 5] = 0, 1e4
    found = solve(GPTQ(), problem(scheme(symmetric=False), weight))
    assert found.quantized.dequantize().isfinite().all()
    assert not found.quantized.dequantize()[0].any()


def test_error_is_relative_to_the_output_over_the_inputs() -> None:
    x = correlated_inputs()
    asked = problem(scheme(), x=x)
    found = solve(GPTQ(), asked)
    lost = x @ (asked.weight - found.quantized.dequantize()).T
    expected = float(lost.square().sum() / (x @ asked.weight.T).square().sum())
    assert found.relative_error == pytest.approx(expected, rel=1e-3)


def test_few_tokens_are_trusted_less_and_reported() -> None:
    """From no off-diagonal at all to the configured shrinkage, with the root of tokens per column."""
    x = correlated_inputs(256)
    usual = GPTQ().shrinkage
    for tokens, trust in ((4, 0.25), (16, 0.5), (64, 1.0), (256, 1.0)):
        expected = usual + (1 - usual) * (1 - trust)
        hessian = hessian_of(x[:tokens])
        asked = replace(problem(scheme()), hessian=hessian)
        found = solve(GPTQ(), asked)
        few = tokens < 64
        assert bool(found.fallback) == few
        if few:
            assert f"only {tokens} calibration tokens for 64 columns" in str(found.fallback)
            assert f"shrunk by {expected:.2f}" in str(found.fallback)
            enough = hessian_of(x[:tokens].repeat(64, 1))  # the same H, as if from many tokens
            same = solve(GPTQ(shrinkage=expected), replace(asked, hessian=enough))
            assert same.fallback is None
            assert torch.equal(found.quantized.codes, same.quantized.codes)
