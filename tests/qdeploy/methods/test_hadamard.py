"""Randomized Hadamard matrices: orthogonal, flat, and applied without being built."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qdeploy.methods.hadamard import Orthogonal, paley, random_hadamard, sylvester

HIDDEN_SIZES = (64, 80, 96, 128, 576, 896, 960, 1536, 2048, 2304, 2560, 2880, 3072, 3584, 4608, 5120, 6656)
"""Of heads and residual streams of real models."""


def drawn(n: int, seed: int = 0) -> Orthogonal:
    return random_hadamard(n, torch.Generator().manual_seed(seed))


def dense(q: Orthogonal) -> Tensor:
    return q.turn(torch.eye(len(q.signs)).double())


@pytest.mark.parametrize("n", [*range(1, 41), 46, 92, 156, 576, 896])
def test_it_is_orthogonal_whatever_the_order(n: int) -> None:
    matrix = dense(drawn(n))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", HIDDEN_SIZES)
def test_every_channel_is_spread_evenly_over_all(n: int) -> None:
    outlier = torch.zeros(1, n).double()
    outlier[0, n // 3] = n**0.5
    torch.testing.assert_close(drawn(n).turn(outlier).abs(), torch.ones(1, n).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", HIDDEN_SIZES)
def test_turning_takes_a_small_part_of_a_full_product(n: int) -> None:
    q = drawn(n)
    assert len(q.left) * len(q.right) == n
    assert len(q.left) + len(q.right) <= 7 * n**0.5


@pytest.mark.parametrize("n", [1, 6, 12, 40, 72])
def test_rows_and_columns_are_turned_by_the_same_matrix(n: int) -> None:
    q = drawn(n)
    x = torch.randn(5, 3 * n, generator=torch.Generator().manual_seed(1)).double()
    three = torch.kron(torch.eye(3).double(), dense(q))
    torch.testing.assert_close(q.turn(x), x @ three)
    torch.testing.assert_close(q.turn_rows(x.T), three.T @ x.T)


def test_signs_come_from_the_generator() -> None:
    assert torch.equal(dense(drawn(64)), dense(drawn(64)))
    assert not torch.equal(dense(drawn(64)), dense(drawn(64, seed=1)))
    # Without them a constant would become an outlier.
    assert drawn(64).turn(torch.ones(1, 64).double()).abs().max() < 4


@pytest.mark.parametrize("order", [1, 2, 8, 64])
def test_sylvester_makes_hadamard_matrices(order: int) -> None:
    assert_hadamard(sylvester(order), order)


@pytest.mark.parametrize("order", [4, 12, 20, 24, 28, 36, 44, 60, 84, 108, 140, 180])
def test_paley_makes_hadamard_matrices(order: int) -> None:
    found = paley(order)
    assert found is not None
    assert_hadamard(found, order)


@pytest.mark.parametrize("order", [1, 2, 6, 10, 52, 92, 156])
def test_paley_says_where_it_has_none(order: int) -> None:
    assert paley(order) is None


def assert_hadamard(matrix: Tensor, order: int) -> None:
    assert matrix.shape == (order, order)
    assert matrix.abs().eq(1).all()
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order).double())
