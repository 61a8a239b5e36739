"""Number formats as data: what a weight's code means and what happens to activations.

Integers are 0 … 2^b − 1 with a scale for a group of input columns (or an output channel) and a zero point:
`w ≈ s · (q − z)`. Symmetric means z = 2^(b−1) everywhere. Minifloats have no zero point: `w ≈ s · value(q)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from qdeploy.errors import UnknownNameError, UsageError

GROUP_SIZES = (128, 64, 32)
"""Group sizes that the engines' fast kernels take, largest first."""


@dataclass(frozen=True, slots=True)
class Minifloat:
    """Numbers of a sign, exponent and mantissa in few bits, without infinities.

    Attributes:
        name: e.g. "e4m3".
        bits: of a code; the sign is the highest.
        mantissa: bits after the point.
        least_exponent: of normal numbers; smaller ones are multiples of 2^(least_exponent − mantissa).
        largest: finite value.
    """

    name: str
    bits: int
    mantissa: int
    least_exponent: int
    largest: float


E4M3 = Minifloat("e4m3", 8, 3, -6, 448.0)
E2M1 = Minifloat("e2m1", 4, 1, 0, 6.0)


@dataclass(frozen=True, slots=True)
class Codebook:
    """Numbers that follow no rule. Formats with them are read; nothing is rounded to them.

    Attributes:
        name: e.g. "nf4".
        bits: of a code.
        numbers: what each code stands for.
    """

    name: str
    bits: int
    numbers: tuple[float, ...]


Steps = Literal["bfloat16", "e8m0", "e4m3"]
"""What scales are rounded to: bfloat16; powers of two; E4M3 over one divisor for all layers run as one."""


@dataclass(frozen=True, slots=True)
class Activations:
    """How the engine rounds what a layer reads, symmetrically.

    Attributes:
        element: the number format; None for int8.
        per: what has a scale of its own: "token", "tensor", or so many columns of a token.
        dynamic: the scale comes from the values themselves; else from the calibration. The static scale of
            groups with E4M3 scales is their divisor.
        steps: see `Steps`; scales of activations that are not grouped are not rounded.
    """

    element: Minifloat | None = None
    per: Literal["token", "tensor"] | int = "token"
    dynamic: bool = True
    steps: Steps = "bfloat16"

    def describe(self) -> str:
        """E.g. "int8 per token" or "static e4m3 per tensor"."""
        name = self.element.name if self.element else "int8"
        grouping = f"in groups of {self.per}" if isinstance(self.per, int) else f"per {self.per}"
        return f"{'' if self.dynamic else 'static '}{name} {grouping}"


INT8_PER_TOKEN = Activations()


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one linear layer is stored.

    Attributes:
        name: preset the scheme came from, e.g. "W4A16".
        bits: bits of a weight code, 2 to 8.
        group_size: input columns that share one scale; None for all.
        symmetric: zero point fixed at 2^(bits−1).
        activations: None where they stay in 16 bits.
        element: the number format of codes; None for integers.
        steps: see `Steps`.
        rows: output channels that share one scale; None for all of the layers that engines run as one.
        product: what kernels round weights to before they multiply, over one divisor for all layers run as
            one; None where they multiply what codes stand for. Such schemes are read, not rounded to.
    """

    name: str
    bits: int
    group_size: int | None
    symmetric: bool = True
    activations: Activations | None = None
    element: Minifloat | Codebook | None = None
    steps: Steps = "bfloat16"
    rows: int | None = 1
    product: Minifloat | None = None

    @property
    def qmax(self) -> int:
        """Largest unsigned code."""
        return (1 << self.bits) - 1

    @property
    def zero(self) -> int:
        """The zero point of the symmetric grid."""
        return 1 << (self.bits - 1)

    @property
    def minifloat(self) -> Minifloat:
        """The element that weights are rounded to, of a scheme that has one."""
        assert isinstance(self.element, Minifloat)
        return self.element

    @property
    def rows_scale_alone(self) -> bool:
        """Whether each output channel has scales of its own, which any power of two divides exactly."""
        return self.rows == 1 and self.steps != "e4m3"

    @property
    def shared_largest(self) -> bool:
        """Whether something is scaled by the largest weight of all layers that engines run as one."""
        return self.rows is None or self.has_divisor

    @property
    def has_divisor(self) -> bool:
        """Whether something of a layer is in E4M3 over one divisor: scales, or weights before the product."""
        return self.steps == "e4m3" or self.product is not None

    @property
    def needs_data(self) -> bool:
        """Whether a scale of its activations comes from the calibration."""
        return self.activations is not None and not self.activations.dynamic

    def groups(self, in_features: int) -> int:
        """Scales per output channel of a layer with `in_features` columns; the last may be for fewer."""
        return 1 if self.group_size is None else -(-in_features // self.group_size)

    def describe(self) -> str:
        """One line for people, e.g. "W4A16 symmetric, group 64" or "FP8_DYNAMIC e4m3, per channel"."""
        kind = self.element.name if self.element else "symmetric" if self.symmetric else "asymmetric"
        return f"{self.name} {kind}, {self._grouping()}"

    def _grouping(self) -> str:
        if self.rows is None:
            return "per tensor"
        if self.rows > 1:
            return f"blocks of {self.rows} × {self.group_size}"
        return "per channel" if self.group_size is None else f"group {self.group_size}"


def _float(
    name: str,
    element: Minifloat,
    group_size: int | None,
    activations: Activations | None,
    steps: Steps = "bfloat16",
    rows: int | None = 1,
) -> Scheme:
    return Scheme(name, element.bits, group_size, True, activations, element, steps, rows)


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
        Scheme("W8A8", bits=8, group_size=None, activations=INT8_PER_TOKEN),
        Scheme("W8A8_STATIC", bits=8, group_size=None, activations=Activations(per="tensor", dynamic=False)),
        Scheme("W4A8", bits=4, group_size=128, activations=INT8_PER_TOKEN),
        _float("FP8_DYNAMIC", E4M3, None, Activations(E4M3)),
        _float("FP8", E4M3, None, Activations(E4M3, "tensor", dynamic=False), rows=None),
        _float("FP8_BLOCK", E4M3, 128, Activations(E4M3, 128), rows=128),
        _float("FP8A16", E4M3, None, None),
        _float("MXFP8", E4M3, 32, Activations(E4M3, 32, steps="e8m0"), "e8m0"),
        _float("MXFP4", E2M1, 32, Activations(E2M1, 32, steps="e8m0"), "e8m0"),
        _float("NVFP4", E2M1, 16, Activations(E2M1, 16, dynamic=False, steps="e4m3"), "e4m3"),
        _float("NVFP4A16", E2M1, 16, None, "e4m3"),
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


def identify(scheme: Scheme) -> Scheme | None:
    """The scheme under the name of the preset that it is a case of; None if it is a case of none.

    Integers may have another group size than their preset's, and without rounded activations other bits.
    """
    for known in PRESETS.values():
        free: dict[str, Any] = {"name": known.name}
        if known.element is None and (known.activations is None or known.group_size is not None):
            free["group_size"] = known.group_size
        if replace(scheme, **free) == known:
            return replace(scheme, name=known.name)
    if scheme.element is not None or scheme.activations is not None or scheme.rows != 1:
        return None
    return replace(scheme, name=f"W{scheme.bits}A16" + ("" if scheme.symmetric else "_ASYM"))


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
    wrong = misfits(scheme, in_features)
    if not wrong:
        return
    fits = [str(g) for g in fitting_group_sizes(in_features.values())] + ["channel"]
    raise UsageError(
        f"Group size {scheme.group_size} does not divide {len(wrong)} of {len(in_features)} layers: "
        f"{listed(wrong)}. Sizes that fit all of them: {', '.join(fits)}. "
        f"Use --group-size {fits[0]} or --group-size auto."
    )


def misfits(scheme: Scheme, in_features: Mapping[str, int]) -> dict[str, int]:
    """Name and columns of the layers that the scheme's groups do not divide."""
    return {name: k for name, k in in_features.items() if scheme.group_size and k % scheme.group_size}


def listed(widths: Mapping[str, int]) -> str:
    """The first of some layers and their columns, for a message."""
    shown = ", ".join(f"{name} ({k} columns)" for name, k in list(widths.items())[:4])
    return shown + (f" and {len(widths) - 4} more" if len(widths) > 4 else "")
