"""HQQ's scales: what they minimize, and that they are never worse than those it began with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qdeploy.methods.base import LinearProblem, needs_hessian, solve
from qdeploy.methods.grid import fit
from qdeploy.methods.hqq import HQQ, shrunk
from qdeploy.methods.rtn import RTN
from qdeploy.quantized import QuantizedLinear
from qdeploy.schemes import Scheme
from tests.qdeploy.methods.problems import K, N, scheme, weights

SCHEMES = [
    scheme(bits, group, symmetric)
    for bits in (2, 3, 4, 8)
    for group in (32, None)
    for symmetric in (True, False)
]


def heavy_tailed(n: int = N, k: int = K) -> Tensor:
    """Weights of which a few are far out, as in a real network."""
    return weights(n, k) * weights(n, k, seed=1).square()


def rounded(config: object, weight: Tensor, kind: Scheme) -> QuantizedLinear:
    return solve(config, LinearProblem("layer", weight, None, kind)).quantized


def norms(layer: QuantizedLinear, weight: Tensor, p: float) -> Tensor:
    """Σ |error|^p of each group, float64 [N, G]."""
    error = (weight - layer.dequantize()).double().abs() ** p
    return error.view(*layer.scales.shape, -1).sum(-1)


@pytest.mark.parametrize("kind", SCHEMES, ids=str)
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("p", [0.4, 0.7, 1.0])
def test_no_group_is_worse_than_at_the_start_and_many_are_better(kind: Scheme, grid: bool, p: float) -> None:
    weight = heavy_tailed()
    before = norms(rounded(RTN(grid=grid), weight, kind), weight, p)
    after = norms(rounded(HQQ(p=p, grid=grid), weight, kind), weight, p)
    assert (after <= before * (1 + 1e-6)).all()
    # With 8 bits, better scales lie closer to the first than two bfloat16 numbers do.
    assert after.sum() < before.sum() or kind.bits == 8


@pytest.mark.parametrize("symmetric", [False, True])
def test_more_iterations_are_never_worse(symmetric: bool) -> None:
    kind, weight = scheme(3, 32, symmetric), heavy_tailed()
    before = norms(rounded(HQQ(iterations=1), weight, kind), weight, 0.7)
    for iterations in (2, 5, 20):
        after = norms(rounded(HQQ(iterations=iterations), weight, kind), weight, 0.7)
        assert (after <= before * (1 + 1e-6)).all()
        before = after


def test_the_scale_of_weights_that_lie_on_a_grid_is_found() -> None:
    """They do not reach the grid's ends, so that the scale which spans them is 7 % too small."""
    codes = torch.arange(-7, 8).repeat(3)[:32].expand(N, 32)
    s = 2.0 ** (torch.arange(N) % 8 - 12).unsqueeze(1)
    kind = scheme(4, None)
    assert (rounded(RTN(), codes * s, kind).dequantize() != codes * s).any(1).all()
    found = rounded(HQQ(), codes * s, kind)
    assert torch.equal(found.scales.float(), s)
    assert torch.equal(found.dequantize(), codes * s)


def test_one_iteration_is_the_least_squares_scale_for_the_shrunk_error() -> None:
    weight, kind = heavy_tailed(), scheme(3, None)
    start = fit(weight, kind)
    s = start.scales.double()
    steps = start.nearest(weight).codes.double() - kind.zero
    aim = weight.double() - shrunk(weight.double() - s * steps, 10.0, 0.7)
    best = torch.stack([torch.linalg.lstsq(q[:, None], w).solution for q, w in zip(steps, aim, strict=True)])
    found = rounded(HQQ(iterations=1), weight, kind).scales
    moved = (found != start.scales).any(1)
    assert moved.float().mean() > 0.5
    torch.testing.assert_close(found.double()[moved], best[moved], rtol=2**-8, atol=0)


@pytest.mark.parametrize("beta", [0.5, 10.0])
def test_shrinking_is_exact_for_the_sum_of_sizes(beta: float) -> None:
    """With p = 1 it minimizes |E| + β/2·(E − e)², here among ten thousand values of E."""
    error, tried = torch.linspace(-4, 4, 41).unsqueeze(1), torch.linspace(-4, 4, 10_001)
    cost = tried.abs() + beta / 2 * (tried - error).square()
    torch.testing.assert_close(shrunk(error, beta, 1.0)[:, 0], tried[cost.argmin(1)], rtol=0, atol=1e-3)


def test_small_errors_shrink_to_nothing_and_large_ones_hardly() -> None:
    error = torch.tensor([0.0, 0.1, -0.1, 100.0, -100.0])
    found = shrunk(error, 10.0, 0.7)
    assert not found[:3].any()
    torch.testing.assert_close(found[3:], error[3:], rtol=1e-3, atol=0)


def test_rows_do_not_depend_on_each_other() -> None:
    weight, kind = heavy_tailed(), scheme(3)
    together = rounded(HQQ(), weight, kind)
    apart = [rounded(HQQ(), rows, kind) for rows in weight.split(5)]
    assert torch.equal(together.codes, torch.cat([layer.codes for layer in apart]))
    assert torch.equal(together.scales, torch.cat([layer.scales for layer in apart]))


def test_zero_points_stay_and_no_data_is_needed() -> None:
    kind = scheme(4, 32, symmetric=False)
    found, start = rounded(HQQ(), heavy_tailed(), kind), fit(heavy_tailed(), kind)
    assert not needs_hessian(HQQ())
    assert found.zeros is not None
    assert start.zeros is not None
    assert torch.equal(found.zeros, start.zeros)
