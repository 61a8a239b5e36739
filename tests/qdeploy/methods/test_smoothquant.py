"""SmoothQuant's scales."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from qdeploy.methods.scaling import ChannelProblem, channel_scales, powers_of_two
from qdeploy.methods.smoothquant import SmoothQuant, _error
from qdeploy.schemes import INT8_PER_TOKEN, Scheme
from tests.qdeploy.methods.problems import K, correlated_inputs, weights

W8A8 = Scheme("W8A8", 8, None, activations=INT8_PER_TOKEN)


def possible(s: Tensor) -> Tensor:
    return powers_of_two(s, torch.arange(K), torch.ones(K))


def problem(x: Tensor, *layers: Tensor, scheme: Scheme = W8A8) -> ChannelProblem:
    largest, mean = x.abs().amax(0), x.abs().mean(0)
    return ChannelProblem(layers or [weights()], largest, mean, x, scheme, possible, not_asked)


def not_asked(_: Sequence[Tensor]) -> float:
    raise AssertionError("SmoothQuant needs no forwards")


def with_outliers() -> Tensor:
    x = torch.randn(512, K, generator=torch.Generator().manual_seed(2))
    x[:, 5] *= 100
    return x


def test_a_given_alpha_gives_the_papers_scales() -> None:
    x, layers = correlated_inputs(), (weights(), 2 * weights(seed=3))
    found = channel_scales(SmoothQuant(alpha=0.8), problem(x, *layers))
    largest = torch.cat(layers).abs().amax(0)
    torch.testing.assert_close(found, x.abs().amax(0) ** 0.8 / largest**0.2)


def test_a_channel_that_nothing_uses_is_left_alone() -> None:
    x, weight = with_outliers(), weights()
    x[:, 3], weight[:, 4] = 0, 0
    found = channel_scales(SmoothQuant(alpha=0.5), problem(x, weight))
    assert found[3] == found[4] == 1
    assert found.isfinite().all()


def test_an_outlier_channel_is_made_smaller_and_outputs_better() -> None:
    asked = problem(with_outliers())
    found = channel_scales(SmoothQuant(), asked)
    assert found.argmax() == 5
    assert found[5] > 4 * found.median()
    assert _error(possible(found), asked) < 0.2 * _error(torch.ones(K), asked)


@pytest.mark.parametrize("scheme", [W8A8, Scheme("W4A16", 4, 32)])
def test_searching_is_never_worse_than_not_smoothing(scheme: Scheme) -> None:
    for seed in range(5):
        asked = problem(correlated_inputs(seed=seed), weights(seed=seed), scheme=scheme)
        found = possible(channel_scales(SmoothQuant(), asked))
        assert _error(found, asked) <= _error(torch.ones(K), asked)


def test_without_tokens_nothing_is_scaled() -> None:
    found = channel_scales(SmoothQuant(), problem(torch.zeros(1, K)))
    assert torch.equal(found, torch.ones(K))
