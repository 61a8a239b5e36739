"""A unit's layers in a candidate scheme: rounded to nearest on the grid of least error, without data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from qdeploy.int8_inputs import round_inputs
from qdeploy.methods.grid import search
from qdeploy.modeling.parameters import replaced
from qdeploy.schemes import Scheme


def rounded_weight(layer: nn.Linear, scheme: Scheme) -> Tensor:
    """Ŵ float32 [N, K]."""
    weight = layer.weight.detach()
    return search(weight, scheme).nearest(weight).dequantize()


@contextmanager
def rounded(model: nn.Module, schemes: Mapping[str, Scheme]) -> Iterator[None]:
    """Let layers, by full name, compute as in these schemes for the time of a `with`."""
    layers = {name: model.get_submodule(name) for name in schemes}
    weights: dict[nn.Module, dict[str, Tensor]] = {
        layer: {"weight": rounded_weight(layer, schemes[name])}
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear)
    }
    handles = round_inputs(model, schemes)
    try:
        with replaced(weights):
            yield
    finally:
        for handle in handles:
            handle.remove()
