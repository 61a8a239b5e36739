"""What layers that read the same input make together: attention of q, k and v, an MLP of gate and up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from torch import Tensor, nn

from qdeploy.modeling.inputs import BlockCall, stopped
from qdeploy.modeling.parameters import replaced

Called = tuple[tuple[Any, ...], Mapping[str, Any], Tensor]
"""Arguments that a module was called with, and what it put out."""


class Parent:
    """The innermost module around some layers, with what it was called with.

    Args:
        call: how the block is called.
        layers: full names of layers of the block.
        batches: some of the block's inputs, float32 [B, T, D].
    """

    def __init__(self, call: BlockCall, layers: Sequence[str], batches: Iterable[Tensor]) -> None:
        linears = call.block.linears()
        self._layers = [linears[name] for name in layers]
        inside = _around(layers).removeprefix(call.block.name).removeprefix(".")
        self._module = call.block.module.get_submodule(inside)
        self._calls = [_record(self._module, call, states) for states in batches]

    def error(self, weights: Sequence[Tensor]) -> float:
        """Σ‖y − y'‖² over its outputs with these weights [N, K] in the place of the layers' own."""
        lost, others = 0.0, zip(self._layers, weights, strict=True)
        with replaced({layer: {"weight": weight} for layer, weight in others}):
            for args, kwargs, expected in self._calls:
                lost += float((_first(self._module(*args, **kwargs)) - expected).square().sum())
        return lost


def _around(layers: Sequence[str]) -> str:
    """The longest dotted name that all of these begin with."""
    parts = takewhile(
        lambda part: len(set(part)) == 1, zip(*(name.split(".") for name in layers), strict=False)
    )
    return ".".join(part[0] for part in parts)


def _record(module: nn.Module, call: BlockCall, states: Tensor) -> Called:
    found: list[Called] = []
    with stopped() as stop:

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: object) -> None:
            found.append((args, kwargs, _first(output)))
            stop()

        handle = module.register_forward_hook(hook, with_kwargs=True)
        try:
            call(states)
        finally:
            handle.remove()
    return found[0]


def _first(output: Any) -> Tensor:
    """The hidden states among what a module puts out: attention hands its softmax weights on, too."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states
