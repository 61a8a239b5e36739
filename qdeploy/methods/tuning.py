"""Methods that work on all layers of a block together, after each of them has been rounded.

Such a method is a rounder like any other, whose function makes the codes that it begins with; beside it a
second function is registered with `@tuner(Config)`, which changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from qdeploy.distributed import Group
from qdeploy.methods.base import needs_hessian
from qdeploy.modeling.activations import Activations
from qdeploy.modeling.blocks import set_weight
from qdeploy.quantized import QuantizedLinear


@dataclass(frozen=True)
class TunedLayer:
    """One layer of a block that is tuned.

    Attributes:
        linear: the layer as the block runs it; its weight is Ŵ, divided by `columns` where there are any.
        weight: W, float32 [N, K], multiplied by `columns`.
        quantized: Ŵ, to begin with.
        columns: s [K] of transforms that scale channels; what the layer reads is not divided by it yet.
        share: how far what it reads is trusted, from 0 with no token to 1 from as many tokens as columns on.
    """

    linear: nn.Linear
    weight: Tensor
    quantized: QuantizedLinear
    columns: Tensor | None = None
    share: float = 1.0

    def put(self, weight: Tensor) -> None:
        """Let the block run with another Ŵ [N, K]."""
        set_weight(self.linear, weight if self.columns is None else weight / self.columns)


@dataclass(frozen=True)
class BlockProblem:
    """The layers of one block, and what the block should put out.

    Attributes:
        name: of the block, for messages.
        run: the block with its weights as they are: hidden states [B, T, D] to hidden states.
        inputs: what the quantized blocks before it put out for this process's samples.
        outputs: what the 16-bit model's block puts out for the same samples.
        layers: full name → layer.
        group: the processes that have the other samples.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    inputs: Activations
    outputs: Activations
    layers: Mapping[str, TunedLayer]
    group: Group


Config = TypeVar("Config")
Tuner = Callable[[Config, BlockProblem], Mapping[str, QuantizedLinear]]

TUNERS: dict[type, Tuner[Any]] = {}
"""Config class → its method."""


def tuner(config: type[Config]) -> Callable[[Tuner[Config]], Tuner[Config]]:
    """Register the decorated function: it finds better codes and scales for the layers of a block.

    It leaves the block running with them, and returns them: full name → layer.
    """

    def register(function: Tuner[Config]) -> Tuner[Config]:
        TUNERS[config] = function
        return function

    return register


def tunes(config: object) -> bool:
    """Whether the method works on whole blocks."""
    return type(config) in TUNERS


def looks_at_inputs(config: object) -> bool:
    """Whether a rounder needs calibration: for its own codes, or for tuning them."""
    return needs_hessian(config) or tunes(config)


def tune(config: object, problem: BlockProblem) -> Mapping[str, QuantizedLinear]:
    """Run the method that `config` belongs to."""
    return TUNERS[type(config)](config, problem)
