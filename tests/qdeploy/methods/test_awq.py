"""AWQ's scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qdeploy.methods.awq import AWQ
from qdeploy.methods.grid import fit
from qdeploy.methods.scaling import ChannelProblem, channel_scales, powers_of_two
from qdeploy.schemes import Scheme
from tests.qdeploy.methods.problems import K, weights

W4 = Scheme("W4A16", 4, 32)


def possible(s: Tensor) -> Tensor:
    return powers_of_two(s, torch.arange(K), torch.ones(K))


def problem(x: Tensor, *layers: Tensor, scheme: Scheme = W4) -> ChannelProblem:
    """Layers whose outputs side by side are what they make together."""

    def error(others: Sequence[Tensor]) -> float:
        return sum(float((x @ (other - w).T).square().sum()) for other, w in zip(others, layers, strict=True))

    return ChannelProblem(layers, x.abs().amax(0), x.abs().mean(0), x, scheme, possible, error)


def rounded(weight: Tensor, s: Tensor) -> Tensor:
    return fit(weight * s, W4).nearest(weight * s).dequantize() / s


def salient(seed: int = 0) -> Tensor:
    """Inputs with a few channels that are always large."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(256, K, generator=generator)
    x[:, ::16] *= 30
    return x


def test_channels_that_matter_are_scaled_up_and_outputs_better() -> None:
    layers = (weights(), weights(seed=3))
    asked = problem(salient(), *layers)
    s = channel_scales(AWQ(), asked)
    assert s[::16].min() > 1 >= s.median()
    assert torch.equal(s, s.log2().round().exp2())
    plain, found = (asked.error([rounded(w, t) for w in layers]) for t in (torch.ones(K), s))
    assert found < 0.7 * plain


def test_leaving_it_alone_is_a_candidate() -> None:
    asked = problem(salient(), weights())
    never = ChannelProblem(
        asked.weights,
        asked.largest,
        asked.mean,
        asked.sample,
        W4,
        possible,
        lambda others: float(not torch.equal(others[0], rounded(weights(), torch.ones(K)))),
    )
    assert torch.equal(channel_scales(AWQ(), never), torch.ones(K))


def test_channels_that_nothing_uses_are_left_alone() -> None:
    x, weight = salient(), weights()
    x[:, 3], weight[:, 4] = 0, 0
    s = channel_scales(AWQ(), problem(x, weight))
    assert s[3] == s[4] == 1
    assert torch.equal(channel_scales(AWQ(), problem(torch.zeros(4, K), weight)), torch.ones(K))
    assert torch.equal(channel_scales(AWQ(), problem(x, torch.zeros(8, K))), torch.ones(K))


def test_one_step_tries_two_scales() -> None:
    calls = []
    asked = problem(salient(), weights())

    def counted(others: Sequence[Tensor]) -> float:
        calls.append(others)
        return asked.error(others)

    counting = ChannelProblem(asked.weights, asked.largest, asked.mean, asked.sample, W4, possible, counted)
    channel_scales(AWQ(steps=1), counting)
    assert len(calls) == 2
