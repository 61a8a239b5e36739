"""LDLQ against its definition, and against GPTQ, whose loop it runs in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qdeploy.methods.base import LinearProblem, Solution, needs_hessian, solve
from qdeploy.methods.gptq import GPTQ
from qdeploy.methods.grid import Grid, fit
from qdeploy.methods.hessian import Hessian
from qdeploy.methods.ldlq import LDLQ
from qdeploy.methods.rtn import RTN
from qdeploy.schemes import Scheme
from tests.qdeploy.methods.problems import correlated_inputs, hessian_of, problem, scheme, weights

SCHEMES = [
    scheme(bits, group, symmetric)
    for bits in (2, 3, 4, 8)
    for group in (32, None)
    for symmetric in (True, False)
]
PLAIN_GPTQ = GPTQ(damp=LDLQ().damp, shrinkage=0.0, act_order=False, grid=False, passes=0, correction=0.0)


def damped(hessian: Hessian) -> Tensor:
    """H + damp·mean(diag H)·I in float64."""
    h = hessian.matrix.double()
    return h + LDLQ().damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)


def unit_lower(h: Tensor) -> Tensor:
    """L̇ + I of H = (L̇ + I)D(L̇ + I)ᵀ, by elimination."""
    rest, lower = h.clone(), torch.eye(len(h), dtype=h.dtype)
    for k in range(len(h)):
        lower[k:, k] = rest[k:, k] / rest[k, k]
        rest -= rest[k, k] * lower[:, k : k + 1] @ lower[:, k : k + 1].T
    return lower


def as_in_the_paper(weight: Tensor, grid: Grid, lower: Tensor) -> Tensor:
    """Codes of Ŵ_k = Q(W_k + (W − Ŵ)_{>k} L̇_{>k,k}) for k from the last column to the first, in float64."""
    w = weight.double()
    rounded, codes = torch.zeros_like(w), torch.zeros_like(w, dtype=torch.uint8)
    width, offsets = w.shape[1] // grid.scales.shape[1], grid.offsets().double()
    for k in reversed(range(w.shape[1])):
        s, z = grid.scales.double()[:, k // width], offsets[:, k // width]
        target = w[:, k] + (w - rounded)[:, k + 1 :] @ lower[k + 1 :, k]
        q = ((target / s).round() + z).clamp(0, grid.scheme.qmax)
        codes[:, k], rounded[:, k] = q.to(torch.uint8), s * (q - z)
    return codes


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_codes_are_those_of_the_paper_by_the_ldl_decomposition(symmetric: bool) -> None:
    asked = problem(scheme(4, 32, symmetric))
    assert asked.hessian is not None
    h = damped(asked.hessian)
    lower = unit_lower(h)
    d = torch.linalg.solve(lower, torch.linalg.solve(lower, h).T)
    torch.testing.assert_close(d, torch.diag(d.diagonal()))
    expected = as_in_the_paper(asked.weight, fit(asked.weight, asked.scheme), lower)
    found = solve(LDLQ(grid=False), asked).quantized.codes
    # Float32 may fall on the other side of a tie, after which a row goes its own way.
    assert (found == expected).all(1).float().mean() > 0.9
    assert (found == expected).float().mean() > 0.99


@pytest.mark.parametrize("group", [32, None])
def test_it_is_gptq_on_reversed_columns_to_the_last_bit(group: int | None) -> None:
    x, weight = correlated_inputs(), weights()
    found = solve(LDLQ(grid=False), problem(scheme(4, group), weight, x)).quantized
    reversed_ = LinearProblem("layer", weight.flip(1), flipped(hessian_of(x)), scheme(4, group))
    expected = solve(PLAIN_GPTQ, reversed_).quantized
    assert torch.equal(found.codes, expected.codes.flip(1))
    assert torch.equal(found.scales, expected.scales.flip(1))


def flipped(hessian: Hessian) -> Hessian:
    """The same sums for the columns in the opposite order."""
    found = Hessian(len(hessian.diagonal))
    found.tokens, found._sum = hessian.tokens, hessian.matrix.flip(0, 1) * (hessian.tokens / 2)
    return found


def test_driven_columns_first_is_gptq_with_act_order() -> None:
    asked = problem(scheme(3))
    found = solve(LDLQ(grid=False, act_order=True), asked).quantized
    assert torch.equal(found.codes, solve(replace(PLAIN_GPTQ, act_order=True), asked).quantized.codes)
    assert not torch.equal(found.codes, solve(LDLQ(grid=False), asked).quantized.codes)


@pytest.mark.parametrize("kind", SCHEMES, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_no_greedy_pass_raises_the_loss(kind: Scheme, act_order: bool) -> None:
    asked = problem(kind, weights(96))
    before = losses(asked, solve(LDLQ(act_order=act_order), asked))
    for passes in (1, 3, 9):
        after = losses(asked, solve(LDLQ(act_order=act_order, passes=passes), asked))
        assert (after <= (1 + 1e-4) * before).all()
        before = after


def test_greedy_passes_lower_the_loss_where_there_is_room() -> None:
    asked = problem(scheme(2), weights(96))
    before, after = (losses(asked, solve(LDLQ(passes=passes), asked)).sum() for passes in (0, 3))
    assert after < 0.98 * before


def losses(asked: LinearProblem, found: Solution) -> Tensor:
    """(w − ŵ)H(w − ŵ)ᵀ of each row for the damped H, float64 [N]."""
    assert asked.hessian is not None
    delta = (asked.weight - found.quantized.dequantize()).double()
    return ((delta @ damped(asked.hessian)) * delta).sum(1)


@pytest.mark.parametrize("kind", SCHEMES, ids=str)
def test_the_proxy_loss_is_below_that_of_rounding(kind: Scheme) -> None:
    asked = problem(kind)
    for grid in (False, True):
        nearest = solve(RTN(grid=grid), asked).relative_error
        assert solve(LDLQ(grid=grid), asked).relative_error < 0.6 * nearest


def test_few_tokens_are_trusted_less_and_reported() -> None:
    found = solve(LDLQ(), problem(scheme(), x=correlated_inputs(tokens=16)))
    assert found.fallback == (
        "ldlq: layer: only 16 calibration tokens for 64 columns; "
        "H was shrunk by 0.50 toward its diagonal, not 0"
    )


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("broken", [None, torch.nan])
def test_an_unusable_hessian_falls_back_to_rounding_and_says_so(grid: bool, broken: float | None) -> None:
    hessian = None if broken is None else hessian_of(torch.full((8, 64), broken))
    found = solve(LDLQ(grid=grid), LinearProblem("layer", weights(), hessian, scheme()))
    expected = solve(RTN(grid=grid), LinearProblem("layer", weights(), None, scheme()))
    assert needs_hessian(LDLQ())
    assert torch.equal(found.quantized.codes, expected.quantized.codes)
    assert str(found.fallback).startswith("ldlq: layer: ")
    assert str(found.fallback).endswith("; rounded to nearest instead")
