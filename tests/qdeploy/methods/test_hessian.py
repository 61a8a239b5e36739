from __future__ import annotations

from typing import get_args

import pytest
import torch

from qdeploy.methods.hessian import CHUNK, LEAF, STRIP, Hessian, Order
from tests.qdeploy.methods.problems import correlated_inputs, hessian_of


def test_hessian_is_twice_the_mean_outer_product_whatever_the_batches() -> None:
    x = correlated_inputs(tokens=30, k=16)
    whole, parts = hessian_of(x), Hessian(16)
    for batch in x.reshape(3, 10, 16).split(1):
        parts.add(batch)
    assert parts.tokens == whole.tokens == 30
    torch.testing.assert_close(whole.matrix, 2 / 30 * x.T @ x)
    torch.testing.assert_close(parts.matrix, whole.matrix)
    torch.testing.assert_close(parts.diagonal, whole.matrix.diagonal())


def test_hessian_of_half_precision_inputs_is_accumulated_in_float32() -> None:
    x = torch.full((4096, 2), 300.0, dtype=torch.float16)
    assert hessian_of(x).matrix.isfinite().all()


def test_wide_inputs_give_a_symmetric_hessian() -> None:
    x = correlated_inputs(tokens=50, k=1100)
    matrix = hessian_of(x).matrix
    torch.testing.assert_close(matrix, 2 / 50 * x.T @ x, rtol=1e-4, atol=1e-4)
    assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize("order", get_args(Order))
def test_factor_inverts_the_damped_shrunk_permuted_hessian(order: Order) -> None:
    hessian = hessian_of(correlated_inputs(k=16))
    factor = hessian.factor(0.01, 0.3, order)
    assert factor is not None
    h, mean = hessian.matrix, hessian.diagonal.mean()
    expected = 0.7 * h + 0.3 * torch.diag(h.diagonal()) + 0.01 * mean * torch.eye(16)
    expected = expected[factor.order][:, factor.order]
    assert torch.equal(factor.upper, factor.upper.triu())
    torch.testing.assert_close(factor.upper.T @ factor.upper @ expected, torch.eye(16), rtol=0, atol=1e-3)
    asked = {
        "forward": list(range(16)),
        "backward": list(range(15, -1, -1)),
        "driven": hessian.diagonal.argsort(descending=True).tolist(),
    }
    assert factor.order.tolist() == asked[order]


@pytest.mark.parametrize("columns", [2 * LEAF, 2 * LEAF + 40, 5 * LEAF + 1])
def test_a_factor_larger_than_a_leaf_is_right_too(columns: int) -> None:
    hessian = hessian_of(torch.randn(4 * columns, columns, generator=torch.Generator().manual_seed(0)))
    factor = hessian.factor(0.01, 0.3, "driven")
    assert factor is not None
    ordered = factor.damped[factor.order][:, factor.order]
    assert torch.equal(factor.upper, factor.upper.triu())
    identity = torch.eye(columns)
    torch.testing.assert_close(factor.upper.T @ factor.upper @ ordered, identity, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mirrored", [False, True])
def test_energy_is_what_the_whole_matrix_gives(mirrored: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 2 * STRIP + 9, generator=generator) for n in (300, 5))
    hessian = hessian_of(x)
    if mirrored:
        assert torch.equal(hessian.matrix, hessian.matrix.T)
    assert hessian.energy(weight) == pytest.approx(
        float(2 * (x @ weight.T).square().sum() / len(x)), rel=1e-4
    )


def test_factor_is_made_once_for_all_linears_that_share_the_input() -> None:
    hessian = hessian_of(correlated_inputs(k=16))
    first = hessian.factor(0.01, 0.3, "driven")
    assert hessian.factor(0.01, 0.3, "driven") is first
    assert hessian.factor(0.01, 0.0, "driven") is not first
    hessian.add(correlated_inputs(k=16, seed=2))
    assert hessian.factor(0.01, 0.3, "driven") is not first


def test_a_rank_deficient_hessian_is_damped_until_it_can_be_factorized() -> None:
    factor = hessian_of(torch.ones(4, 32)).factor(1e-18, 0.0, "driven")
    assert factor is not None
    assert 1e-18 < factor.damp < 1e-8
    assert factor.upper.isfinite().all()


@pytest.mark.parametrize("broken", [torch.inf, -torch.inf, torch.nan])
def test_a_hessian_of_broken_inputs_has_no_factor(broken: float) -> None:
    x = correlated_inputs(k=16)
    x[3, 5] = broken
    hessian = hessian_of(x)
    assert hessian.factor(0.01, 0.3, "driven") is None
    assert not hessian.finite


def test_all_chunks_and_strips_of_many_tokens_are_taken_in() -> None:
    x = torch.randn(2 * CHUNK + 7, STRIP + 5, generator=torch.Generator().manual_seed(0))
    expected = 2 * x.T @ x / len(x)
    assert torch.allclose(hessian_of(x).matrix, expected, atol=1e-5)


def test_products_of_bfloat16_are_summed_in_float32() -> None:
    """Each micro-batch's product is rounded; what they add up to is not."""
    x = torch.randn(64 * 64, 24, generator=torch.Generator().manual_seed(0)) + 1
    exact, rounded = Hessian(24), Hessian(24, products=torch.bfloat16)
    for batch in x.split(64):
        exact.add(batch)
        rounded.add(batch)
    error = (rounded.matrix - exact.matrix).abs() / exact.matrix.abs()
    assert 0 < error.max() < 2**-9  # a sum in bfloat16 would be off by more
    assert torch.equal(rounded.matrix, rounded.matrix.T)
    assert rounded.factor(0.01, 0.0, "driven") is not None
