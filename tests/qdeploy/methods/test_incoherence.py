"""Incoherence, and rounding in another basis."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from qdeploy.assignment import resolve_schemes
from qdeploy.errors import RecipeError
from qdeploy.methods.base import LinearProblem, solve
from qdeploy.methods.basis import solve_in
from qdeploy.methods.gptq import GPTQ
from qdeploy.methods.incoherence import Incoherence, incoherent, turns
from qdeploy.methods.ldlq import LDLQ
from qdeploy.methods.rtn import RTN
from qdeploy.methods.spqr import SpQR
from qdeploy.recipe import Recipe
from qdeploy.reference_linear import ReferenceLinear, portable
from tests.qdeploy.methods.problems import correlated_inputs, hessian_of, problem, scheme, weights

Kind = Literal["hadamard", "orthogonal"]
KINDS: tuple[Kind, ...] = ("hadamard", "orthogonal")
ROUNDERS = [RTN(grid=True), GPTQ(), LDLQ(passes=2), SpQR()]
W2 = scheme(2, 32, symmetric=False)


def outlying() -> Tensor:
    weight = weights()
    weight[:, 5] *= 30
    weight[7] *= 10
    return weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rescale", [True, False])
def test_nothing_is_lost_on_the_way_there_and_back(kind: Kind, rescale: bool) -> None:
    whole = problem(W2, weights(36, 72))  # an odd factor both ways
    turned = incoherent(Incoherence(kind=kind, rescale=rescale), whole)
    torch.testing.assert_close(turned.back(turned.problem.weight), whole.weight, rtol=0, atol=1e-5)
    assert turned.problem.hessian is not None
    assert whole.hessian is not None
    energy = whole.hessian.energy(whole.weight)
    assert turned.problem.hessian.energy(turned.problem.weight) == pytest.approx(energy, rel=1e-4)


def test_what_outputs_lack_moves_along() -> None:
    """Σ rᵀWx, by M and W alone, is the same in any basis."""
    m = weights(seed=3)
    whole = replace(problem(W2), lack=m)
    turned = incoherent(Incoherence(), whole).problem
    assert turned.lack is not None
    assert float((turned.lack * turned.weight).sum()) == pytest.approx(
        float((m * whole.weight).sum()), rel=1e-3
    )
    assert not torch.allclose(turned.lack, m)


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_stands_out(kind: Kind) -> None:
    whole = problem(W2, outlying())
    turned = incoherent(Incoherence(kind=kind), whole).problem.weight

    def peak(weight: Tensor) -> float:
        return float(weight.abs().amax() / weight.square().mean().sqrt())

    assert peak(turned) < 0.5 * peak(whole.weight)


@pytest.mark.parametrize("rounder", ROUNDERS, ids=lambda rounder: type(rounder).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_that_move_are_those_taken_again(kind: Kind, rounder: object) -> None:
    """Rounding in one pass is what rounding the turned layer on its own turned inputs is."""
    x, config = correlated_inputs(), Incoherence(kind=kind, rescale=False)
    whole = LinearProblem("layer", weights(), hessian_of(x), scheme(3, 16))
    turned = incoherent(config, whole)
    _, v = turns(config, *whole.weight.shape)
    again = replace(turned.problem, hessian=hessian_of(v.turn(x.double()).float()))
    assert turned.problem.hessian is not None
    assert again.hessian is not None
    torch.testing.assert_close(turned.problem.hessian.matrix, again.hessian.matrix, rtol=1e-3, atol=1e-3)
    one_pass = solve_in([config], rounder, whole)
    two_passes = turned.back(solve(rounder, again).quantized.dequantize())
    # A code that lies between two levels may fall either way.
    moved = (one_pass.quantized.dequantize() - portable(two_passes).float()).norm() / two_passes.norm()
    assert moved < 0.02
    assert isinstance(one_pass.quantized, ReferenceLinear)


@pytest.mark.parametrize("symmetric", [True, False])
def test_quip_beats_ldlq_where_weights_stand_out(symmetric: bool) -> None:
    whole = problem(scheme(2, None, symmetric), outlying())
    quip, ldlq = (solve_in(bases, LDLQ(), whole).relative_error for bases in ([Incoherence()], []))
    assert quip < 0.7 * ldlq


def test_the_seed_decides() -> None:
    whole = problem(W2)
    found = [solve_in([Incoherence(seed=seed)], RTN(), whole).quantized.dequantize() for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("x", [None, torch.zeros(8, 64), torch.full((8, 64), torch.nan), torch.ones(1, 64)])
def test_unusable_calibration_leaves_a_finite_layer(x: Tensor | None) -> None:
    whole = LinearProblem("layer", weights(), None if x is None else hessian_of(x), W2)
    assert solve_in([Incoherence()], GPTQ(), whole).quantized.dequantize().isfinite().all()


def test_activations_are_not_rounded_in_another_basis() -> None:
    recipe = Recipe.from_flags("m", scheme="W8A8", method="incoherence+rtn")
    with pytest.raises(RecipeError, match=r"incoherence\+rtn cannot make W8A8 .* stay in 16 bits"):
        resolve_schemes(recipe, {"q_proj": (64, 64)})
