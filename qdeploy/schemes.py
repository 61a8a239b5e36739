"""Number formats as data: what a weight code means and what happens to activations.

Weight grids are unsigned integers 0 … 2^b − 1 with a scale per group of input columns (or per output channel)
and a zero point: `w ≈ s · (q − z)`. Symmetric means z = 2^(b−1) everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from qdeploy.errors import UnknownNameError, UsageError

GROUP_SIZES = (128, 64, 32)
"""Group sizes that the engines' fast kernels take, largest first."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one linear layer is stored.

    Attributes:
        name: preset the scheme came from, e.g. "W4A16".
        bits: bits of a weight code, 2 to 8.
        group_size: input columns that share one scale; None for one scale per output channel.
        symmetric: zero point fixed at 2^(bits−1).
        activation_bits: None for 16-bit activations; 8 for int8, quantized per token at run time.
    """

    name: str
    bits: int
    group_size: int | None
    symmetric: bool = True
    activation_bits: Literal[8] | None = None

    @property
    def qmax(self) -> int:
        """Largest unsigned code."""
        return (1 << self.bits) - 1

    @property
    def zero(self) -> int:
        """The zero point of the symmetric grid."""
        return 1 << (self.bits - 1)

    def groups(self, in_features: int) -> int:
        """Number of scales per output channel for a layer with `in_features` columns."""
        return 1 if self.group_size is None else in_features // self.group_size

    def describe(self) -> str:
        """One line for people, e.g. "W4A16 symmetric, group 64"."""
        grouping = "per channel" if self.group_size is None else f"group {self.group_size}"
        return f"{self.name} {'symmetric' if self.symmetric else 'asymmetric'}, {grouping}"


PRESETS: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("W4A16", bits=4, group_size=128),
        Scheme("W4A16_ASYM", bits=4, group_size=128, symmetric=False),
        Scheme("W3A16", bits=3, group_size=128),
        Scheme("W3A16_ASYM", bits=3, group_size=128, symmetric=False),
        Scheme("W2A16", bits=2, group_size=128),
        Scheme("W2A16_ASYM", bits=2, group_size=128, symmetric=False),
        Scheme("W8A16", bits=8, group_size=128),
        Scheme("W8A8", bits=8, group_size=None, activation_bits=8),
    )
}


def preset(name: str) -> Scheme:
    """The named scheme, case-insensitive.

    Raises:
        UnknownNameError: no such preset.
    """
    found = PRESETS.get(name.upper().replace("-", "_"))
    if found is None:
        raise UnknownNameError("scheme", name, PRESETS)
    return found


def fitting_group_sizes(in_features: Iterable[int]) -> list[int]:
    """Sizes out of GROUP_SIZES that divide every layer, largest first."""
    widths = set(in_features)
    return [g for g in GROUP_SIZES if all(k % g == 0 for k in widths)]


def auto_group_size(scheme: Scheme, in_features: Iterable[int]) -> Scheme:
    """`scheme` with the largest group size that divides every layer, per channel if none does."""
    if scheme.group_size is None:
        return scheme
    fitting = fitting_group_sizes(in_features)
    return replace(scheme, group_size=fitting[0] if fitting else None)


def check_group_size(scheme: Scheme, in_features: Mapping[str, int]) -> None:
    """Refuse a group size that does not divide some layer.

    Args:
        in_features: module name → number of input columns.

    Raises:
        UsageError: lists the layers and the sizes that fit all of them.
    """
    if scheme.group_size is None:
        return
    misfits = {name: k for name, k in in_features.items() if k % scheme.group_size}
    if not misfits:
        return
    shown = ", ".join(f"{name} ({k} columns)" for name, k in list(misfits.items())[:4])
    more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
    fits = [str(g) for g in fitting_group_sizes(in_features.values())] + ["channel"]
    raise UsageError(
        f"Group size {scheme.group_size} does not divide {len(misfits)} of {len(in_features)} layers: "
        f"{shown}{more}. Sizes that fit all of them: {', '.join(fits)}. "
        f"Use --group-size {fits[0]} or --group-size auto."
    )
