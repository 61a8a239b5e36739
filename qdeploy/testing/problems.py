"""Made-up layers: ordinary ones, and those on which methods break."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qdeploy.methods.base import LinearProblem
from qdeploy.methods.grid import fit
from qdeploy.methods.hessian import Hessian
from qdeploy.methods.scaling import ChannelProblem, powers_of_two
from qdeploy.schemes import PRESETS, Scheme

N, K, TOKENS = 48, 128, 512
SCHEMES = (
    replace(PRESETS["W4A16"], group_size=32),
    replace(PRESETS["W3A16_ASYM"], group_size=64),
    *(PRESETS[name] for name in ("W8A8", "FP8", "MXFP4", "NVFP4A16")),
)
"""Both grids, both kinds of elements, and every way in which scales are shared or stored."""


def layer_inputs(seed: int = 0) -> Tensor:
    """Inputs float32 [512, 128]: channels are correlated and of different sizes, as in a network."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(K, K, generator=generator) * torch.logspace(0, -2, K)
    return torch.randn(TOKENS, K, generator=generator) @ mixing.T


def linear_problem(scheme: Scheme = SCHEMES[0], seed: int = 0) -> LinearProblem:
    """A random layer [48, 128] and what it reads."""
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    return _problem(scheme, weight, _hessian(layer_inputs(seed)))


def channel_problem(
    scheme: Scheme = SCHEMES[0], x: Tensor | None = None, weights: Sequence[Tensor] | None = None
) -> ChannelProblem:
    """Layers that read the same channels; what they make together is their outputs side by side.

    Args:
        scheme: the number format.
        x: what they read, float32 [T, 128]; by default `layer_inputs()`.
        weights: float32 [N, 128] each; by default two random ones.
    """
    x = layer_inputs() if x is None else x
    layers = [linear_problem(seed=seed).weight for seed in range(2)] if weights is None else weights

    def possible(wanted: Tensor) -> Tensor:
        return powers_of_two(wanted, torch.arange(K), torch.ones(K))

    def error(others: Sequence[Tensor]) -> float:
        return sum(float((x @ (o - w).T).square().sum()) for o, w in zip(others, layers, strict=True))

    largest = x.abs().amax(0) if len(x) else torch.zeros(K)
    mean = x.abs().sum(0) / max(len(x), 1)
    return ChannelProblem(layers, largest, mean, x, scheme, possible, error)


def rounding_error(problem: ChannelProblem, s: Tensor) -> float:
    """What the layers lose, see `ChannelProblem.error`, once they are scaled by s and rounded to nearest.

    Args:
        problem: the layers.
        s: wanted scales, float32 [K]; the powers of two nearest to them are taken.
    """
    s = problem.possible(s)
    return problem.error(
        [fit(w * s, problem.scheme).nearest(w * s).dequantize() / s for w in problem.weights]
    )


def hard_layers(scheme: Scheme, *, with_data: bool) -> Iterator[tuple[str, LinearProblem]]:
    """Layers by what is special about them, with what they read if methods are to look at it."""
    plain, x = linear_problem(scheme), layer_inputs()
    outlier, dead = plain.weight.clone(), x.clone()
    outlier[0, 0], dead[:, ::3] = 1e4, 0
    yield "an ordinary layer", plain
    yield "a layer of zeros", _problem(scheme, torch.zeros(N, K), plain.hessian)
    yield "weights below what scales hold", _problem(scheme, plain.weight * 1e-9, plain.hessian)
    yield "one weight of 10⁴", _problem(scheme, outlier, plain.hessian)
    yield "an input that is infinite", replace(plain, hessian=_hessian(torch.full((1, K), torch.inf)))
    if not with_data:
        yield "no calibration data", replace(plain, hessian=None)
        return
    yield "no token", replace(plain, hessian=Hessian(K))
    yield "fewer tokens than columns", replace(plain, hessian=_hessian(x[:5]))
    yield "channels that are always 0", replace(plain, hessian=_hessian(dead))


def hard_channels(scheme: Scheme) -> Iterator[tuple[str, ChannelProblem]]:
    """Layers that read the same channels, by what is special about them."""
    x, plain = layer_inputs(), channel_problem(scheme)
    dead, outlier = x.clone(), x.clone()
    dead[:, ::3], outlier[:, 5] = 0, outlier[:, 5] * 1000
    unused = [weight * (torch.arange(K) % 2) for weight in plain.weights]
    yield "ordinary layers", plain
    yield "a channel with outliers", channel_problem(scheme, outlier)
    yield "channels that are always 0", channel_problem(scheme, dead)
    yield "channels that no weight uses", channel_problem(scheme, weights=unused)
    yield "a single layer", channel_problem(scheme, weights=plain.weights[:1])
    yield "no token", channel_problem(scheme, x[:0])


def _problem(scheme: Scheme, weight: Tensor, hessian: Hessian | None) -> LinearProblem:
    largest = float(weight.abs().amax()) if scheme.shared_largest else None
    return LinearProblem("layer", weight, hessian, scheme, largest=largest)


def _hessian(x: Tensor) -> Hessian:
    hessian = Hessian(K)
    hessian.add(x)
    return hessian
