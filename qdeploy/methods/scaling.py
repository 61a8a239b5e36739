"""Channel scaling: transforms that make input channels smaller, their weight columns larger, or the reverse.

With x_j ← x_j / s_j and w_j ← w_j · s_j the product Wx stays what it is; whatever puts x out takes over the
1/s_j (`qdeploy.modeling.feeds`). What changes is which values share a scale, of weights and of activations.

Every s_j is a power of two, the nearest to what a method asks for. Then nothing is rounded on the way: norms
in 16 bit and the scales of quantized layers hold w / s exactly, H becomes S⁻¹HS⁻¹ to the last bit, and a
layer that computes with the codes of W·S, divided by S again, computes what the folded model does.

A method is registered beside its config dataclass with `@scaling(Config)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from qdeploy.distributed import Group
from qdeploy.schemes import Scheme
from qdeploy.stopwatch import part

SAMPLED = 512
"""Tokens of the calibration whose inputs are kept."""

FARTHEST = 8
"""Largest exponent either way: 2⁸ is far beyond what smoothing asks for, and far from where 16 bits end."""

SMALLEST = 2.0**-14
"""What the largest weight of a row stays above: below it float16 loses digits."""


class Channels:
    """What scalings want to know of the inputs that layers share: how large they get, and some of them.

    Args:
        in_features: K.
        tokens: how many there will be in this process.
        device: where they are.
    """

    def __init__(self, in_features: int, tokens: int, device: torch.device | str = "cpu") -> None:
        self.largest, self._sum = (torch.zeros(in_features, device=device) for _ in range(2))
        self._every, self._seen = max(1, tokens // SAMPLED), 0
        self._kept = [torch.empty(0, in_features, device=device)]

    @property
    def mean(self) -> Tensor:
        """Of |x_j|, float32 [K]."""
        return self._sum / max(self._seen, 1)

    @property
    def sample(self) -> Tensor:
        """Inputs of some tokens, evenly apart, float32 [T, K]."""
        return torch.cat(self._kept)

    @part("hessian")
    def add(self, x: Tensor) -> None:
        """Take in a batch of inputs float32 [..., K]."""
        rows = x.reshape(-1, x.shape[-1])
        sizes = rows.abs()
        self._sum += sizes.sum(0)
        if len(rows):
            torch.maximum(self.largest, sizes.amax(0), out=self.largest)
        self._kept.append(rows[-self._seen % self._every :: self._every].clone())
        self._seen += len(rows)

    def merge(self, group: Group) -> None:
        """Take in what the other processes have seen; the sample is that of the first."""
        group.greatest(self.largest)
        group.add(self._sum)
        self._seen = int(group.totals(self._seen)[0])
        self._kept = [group.share(self.sample.cpu()).to(self.largest.device)]


@dataclass(frozen=True)
class ChannelProblem:
    """Layers that read the same K channels.

    Attributes:
        weights: float32 [N_i, K], one for each layer.
        largest, mean: float32 [K], of |x_j| over all tokens.
        sample: float32 [T, K], inputs of some tokens.
        scheme: the number format that the weights, and the activations if it says so, will have.
        possible: what becomes of scales that a method would like, float32 [K]: see `powers_of_two`.
        error: of other weights in their place, the squared error of what the layers make together: attention,
            an MLP, or a single layer's own output.
    """

    weights: Sequence[Tensor]
    largest: Tensor
    mean: Tensor
    sample: Tensor
    scheme: Scheme
    possible: Callable[[Tensor], Tensor]
    error: Callable[[Sequence[Tensor]], float]


Config = TypeVar("Config")
Scaling = Callable[[Config, ChannelProblem], Tensor]

SCALINGS: dict[type, Scaling[Any]] = {}
"""Config class → its method."""


CLIPPING: dict[type, Callable[[Any], bool]] = {}
"""Config class → whether, so configured, the largest weights are cut off once they are scaled."""


def scaling(
    config: type[Config], *, clips: Callable[[Config], bool] = lambda _: False
) -> Callable[[Scaling[Config]], Scaling[Config]]:
    """Register the decorated function: it returns the s that it would like, float32 [K], all positive.

    Args:
        config: the config dataclass.
        clips: whether, so configured, `qdeploy.methods.clipping` follows.
    """

    def register(function: Scaling[Config]) -> Scaling[Config]:
        SCALINGS[config], CLIPPING[config] = function, clips
        return function

    return register


def channel_scales(config: object, problem: ChannelProblem) -> Tensor:
    """The s, float32 [K], that the method which `config` belongs to would like."""
    return SCALINGS[type(config)](config, problem)


def powers_of_two(wanted: Tensor, rows: Tensor, sizes: Tensor) -> Tensor:
    """What comes nearest to the wanted scales.

    Args:
        wanted: float32 [K].
        rows: int64 [K], which row of the layer before is this channel; channels of one row get one scale.
        sizes: float32 [R], the magnitude of each row, which is to stay above SMALLEST.

    Returns:
        float32 [R], one for each row.
    """
    asked = torch.where(wanted.isfinite() & (wanted > 0), wanted, 1.0).log2()
    sums = torch.zeros_like(sizes).index_add_(0, rows, asked)
    mean = sums / rows.bincount(minlength=len(sizes)).clamp_min(1)
    room = (sizes / SMALLEST).log2().floor().clamp(0, FARTHEST)
    return torch.exp2(mean.round().clamp_min(-FARTHEST).minimum(room))
