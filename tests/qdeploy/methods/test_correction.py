from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qdeploy.methods.base import LinearProblem, needs_reference, solve
from qdeploy.methods.correction import RIDGE, Lack, corrected
from qdeploy.methods.gptq import GPTQ
from qdeploy.methods.hessian import Factor
from qdeploy.methods.rtn import RTN
from tests.qdeploy.methods.problems import K, N, correlated_inputs, problem, scheme, weights

X = correlated_inputs()


def lacking(r: Tensor, x: Tensor = X) -> LinearProblem:
    """A problem whose outputs lack r [n, N]."""
    lack = Lack(N, K)
    for some, inputs in zip(r.split(200), x.split(200), strict=True):
        lack.add(some, inputs)
    return replace(problem(scheme(), x=x), lack=lack.matrix(slice(None)))


def factor_of(asked: LinearProblem) -> Factor:
    assert asked.hessian is not None
    factor = asked.hessian.factor(GPTQ().damp, GPTQ().shrinkage, "driven")
    assert factor is not None
    return factor


def test_it_is_the_ridge_regression() -> None:
    r = torch.randn(len(X), N, generator=torch.Generator().manual_seed(3))
    asked = lacking(r)
    h = factor_of(asked).damped.double()
    ridge = h + RIDGE * h.diagonal().mean() * torch.eye(K)
    m = 2 / len(X) * r.double().T @ X.double()
    expected = weights().double() + 0.3 * m @ ridge.inverse()
    torch.testing.assert_close(corrected(asked, factor_of(asked), 0.3).double(), expected)


def test_nothing_lacking_changes_nothing() -> None:
    asked = lacking(torch.zeros(len(X), N))
    assert torch.equal(corrected(asked, factor_of(asked), 1.0), weights())
    assert torch.equal(corrected(replace(asked, lack=None), factor_of(asked), 1.0), weights())


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_outputs_come_nearer_to_what_they_should_be(strength: float) -> None:
    r = X @ torch.randn(K, N, generator=torch.Generator().manual_seed(4)) * 0.1
    asked = lacking(r)
    wanted = X @ weights().T + r
    left = wanted - X @ corrected(asked, factor_of(asked), strength).T
    assert left.norm() < r.norm()


def test_gptq_rounds_what_makes_up_for_the_lack() -> None:
    r = X @ torch.randn(K, N, generator=torch.Generator().manual_seed(4)) * 0.1
    asked = lacking(r)
    wanted = X @ weights().T + r

    def missed(config: GPTQ) -> float:
        return float((wanted - X @ solve(config, asked).quantized.dequantize().T).norm())

    assert missed(GPTQ(correction=1.0)) < missed(GPTQ(correction=0.5)) < missed(GPTQ(correction=0.0))


def test_few_tokens_are_trusted_less() -> None:
    few = X[: K // 4]
    asked = lacking(torch.randn(len(few), N, generator=torch.Generator().manual_seed(5)), few)
    asked = replace(asked, scheme=scheme(8))
    found = solve(GPTQ(correction=1.0), asked).quantized.dequantize()
    assert asked.hessian is not None
    factor = asked.hessian.factor(GPTQ().damp, 1 - 0.5 * (1 - GPTQ().shrinkage), "driven")
    assert factor is not None
    half, whole = (corrected(asked, factor, strength) for strength in (0.5, 1.0))
    assert (found - half).norm() < (found - whole).norm()


def test_a_broken_lack_is_left_out_and_told() -> None:
    asked = lacking(torch.randn(len(X), N, generator=torch.Generator().manual_seed(3)))
    assert asked.lack is not None
    asked.lack[2, 3] = torch.nan
    found = solve(GPTQ(), asked)
    assert f"NaN or infinite in 1 of {N * K} sums" in str(found.fallback)
    plain = solve(GPTQ(), replace(asked, lack=None))
    assert plain.fallback is None
    assert torch.equal(found.quantized.codes, plain.quantized.codes)


def test_only_gptq_with_a_correction_needs_the_16_bit_model() -> None:
    assert needs_reference(GPTQ())
    assert not needs_reference(GPTQ(correction=0.0))
    assert not needs_reference(RTN())
