"""What a recipe comes to for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdeploy import registry
from qdeploy.errors import RecipeError
from qdeploy.methods.base import needs_all_rows, without_kernel
from qdeploy.methods.basis import BASES, WITHOUT_KERNEL
from qdeploy.methods.rotation import Rotation
from qdeploy.methods.scaling import CLIPPING, SCALINGS
from qdeploy.methods.tuning import looks_at_inputs
from qdeploy.schemes import Scheme


@dataclass(frozen=True)
class Planned:
    """How one layer is quantized.

    Attributes:
        scheme: the number format to end in.
        rounder: config of the method that makes the codes.
        transforms: configs of the methods before it, in order.
        rotation: of the whole model, before all of them; the same for all layers.
    """

    scheme: Scheme
    rounder: Any
    transforms: tuple[Any, ...] = ()
    rotation: Rotation | None = None

    @property
    def needs_data(self) -> bool:
        """Whether some stage, or the number format, looks at the layer's inputs."""
        return looks_at_inputs(self.rounder) or bool(self.scalings) or self.scheme.needs_data

    @property
    def scalings(self) -> tuple[Any, ...]:
        """Those transforms that scale channels."""
        return tuple(config for config in self.transforms if type(config) in SCALINGS)

    @property
    def clips(self) -> bool:
        """Whether the largest weights are cut off before they are rounded.

        Not for rounders that look at the inputs themselves, which make more of such weights, nor for those
        whose layers are not what is left of the weight on a grid alone.
        """
        if looks_at_inputs(self.rounder) or self.without_kernel is not None:
            return False
        return any(CLIPPING[type(config)](config) for config in self.scalings)

    @property
    def bases(self) -> tuple[Any, ...]:
        """Those transforms that change the basis."""
        return tuple(config for config in self.transforms if type(config) in BASES)

    @property
    def needs_all_rows(self) -> bool:
        """Whether processes cannot share out the layer's rows."""
        return self.scheme.rows != 1 or bool(self.bases) or needs_all_rows(self.rounder)

    @property
    def without_kernel(self) -> str | None:
        """Why the layer is stored dequantized, if it is."""
        return WITHOUT_KERNEL if self.bases else without_kernel(self.rounder)

    @property
    def method(self) -> str:
        """The stages in a word, e.g. "smoothquant+gptq"."""
        before = () if self.rotation is None else (self.rotation,)
        return "+".join(_name(config) for config in (*before, *self.transforms, self.rounder))


def _name(config: object) -> str:
    """What a method is registered as; one that only its own program knows goes by the name of its class."""
    return registry.name_of("methods", type(config)) or type(config).__name__.lower()


Plan = Mapping[str, Planned]
"""Module name → what is done to it; layers that stay in 16 bit are left out."""


def common_transforms(names: Sequence[str], plan: Plan) -> tuple[Any, ...]:
    """The channel scalings of layers that read the same input.

    Raises:
        RecipeError: they differ.
    """
    found = [plan[name].scalings if name in plan else () for name in names]
    if any(transforms != found[0] for transforms in found):
        told = ", ".join(f"{name}: {plan[name].method if name in plan else '16 bit'}" for name in names)
        raise RecipeError(
            f"Layers that read the same input need the same transforms; got {told}. Give them one rule."
        )
    return found[0]
