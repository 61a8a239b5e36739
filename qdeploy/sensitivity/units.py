"""What must be stored alike, and so is decided for at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qdeploy.assignment import fused_sets
from qdeploy.module_names import expert_of

Shape = tuple[int, int]
"""Output and input features of a layer."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Layers of one block that engines want in one scheme: q, k and v; gate and up; all experts; or one.

    Attributes:
        block: name of the block.
        layers: full name → its shape (N, K), in the model's order.
        experts: whether these are the experts of the block.
    """

    block: str
    layers: Mapping[str, Shape]
    experts: bool = False

    @property
    def name(self) -> str:
        """For people: the common part of the names, then what differs."""
        first = next(iter(self.layers))
        if self.experts:
            return _experts(first)
        return f"{first.rpartition('.')[0]}.{'+'.join(name.rpartition('.')[2] for name in self.layers)}"

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(n * k for n, k in self.layers.values())

    @property
    def kernel_shape(self) -> Shape:
        """(N, K) of the matrix that an engine multiplies by: layers side by side; of experts that of down.

        An expert's last layer is the one that puts hidden states out; kernels for experts go by it.
        """
        shapes = list(self.layers.values())
        return shapes[-1] if self.experts else (sum(n for n, _ in shapes), shapes[0][1])


def find_units(blocks: Mapping[str, Mapping[str, Shape]]) -> list[Unit]:
    """The units of every block, in the order of the model.

    Args:
        blocks: block → name of each of its linear layers → shape.
    """
    return [unit for block, layers in blocks.items() for unit in _units(block, layers)]


def _units(block: str, layers: Mapping[str, Shape]) -> list[Unit]:
    dense = [name for name in layers if expert_of(name) is None]
    together = {name: siblings for _, siblings in fused_sets(dense) for name in siblings}
    sets: dict[str, tuple[list[str], bool]] = {}
    for name in layers:
        if name in together:
            sets.setdefault(together[name][0], (together[name], False))
        else:
            expert = expert_of(name)
            sets.setdefault(expert[0] if expert else name, ([], expert is not None))[0].append(name)
    return [Unit(block, {name: layers[name] for name in names}, experts) for names, experts in sets.values()]


def _experts(layer: str) -> str:
    expert = expert_of(layer)
    assert expert is not None
    return expert[0]
