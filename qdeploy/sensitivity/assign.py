"""The choices that meet a target with the least harm, or stay below a harm with the fewest bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qdeploy.errors import UsageError
from qdeploy.memory import format_size
from qdeploy.schemes import Scheme
from qdeploy.sensitivity.budget import Option, solve
from qdeploy.sensitivity.candidates import Choice
from qdeploy.sensitivity.harm import Harms
from qdeploy.sensitivity.size import Sizes
from qdeploy.sensitivity.units import Unit

Assignment = Mapping[str, Choice]
"""Name of a unit → its scheme."""


@dataclass(frozen=True, slots=True)
class Target:
    """What an assignment must keep to.

    Attributes:
        kind: "bits": mean bits of a weight of the decoder's linear layers, scales and zero points included;
            "size": bytes of the checkpoint's weight files; "kl": sum of the units' harms.
        value: the most that it may be.
    """

    kind: Literal["bits", "size", "kl"]
    value: float

    def __str__(self) -> str:
        if self.kind == "bits":
            return f"at most {self.value:g} bits per weight"
        if self.kind == "size":
            return f"weight files of at most {format_size(self.value)}"
        return f"KL of at most {self.value:g} nats per token"


@dataclass(frozen=True, slots=True)
class Assigned:
    """Choices, and what they come to.

    Attributes:
        choices: of every unit.
        bits: mean bits of a weight of the decoder's linear layers.
        size: bytes of the checkpoint's weight files; at most this.
        harm: sum of the units' harms, nats per token.
    """

    choices: Assignment
    bits: float
    size: int
    harm: float


def assign(
    units: Sequence[Unit], schemes: Mapping[str, Sequence[Scheme]], harms: Harms, sizes: Sizes, target: Target
) -> Assigned:
    """Choose for every unit one of its schemes or 16 bit.

    Raises:
        UsageError: no choice meets the target, or 16 bit does.
    """
    choices: dict[str, list[Choice]] = {unit.name: [*schemes[unit.name], None] for unit in units}
    options = [[_option(unit, c, harms, sizes, target) for c in choices[unit.name]] for unit in units]
    found = solve(options, _limit(sizes, target))
    if found is None:
        raise UsageError(_too_small(options, sizes, target))
    chosen = {unit.name: choices[unit.name][i] for unit, i in zip(units, found, strict=True)}
    if not any(chosen.values()):
        raise UsageError(f"The 16-bit model itself meets the target ({target}). Give a smaller one.")
    return tally(units, chosen, harms, sizes)


def tally(units: Sequence[Unit], chosen: Assignment, harms: Harms, sizes: Sizes) -> Assigned:
    """What choices come to."""
    bits = sum(sizes.bits(unit, chosen[unit.name]) for unit in units)
    size = sizes.rest + sum(sizes.bytes(unit, chosen[unit.name]) for unit in units)
    harm = sum(_harm(unit, chosen[unit.name], harms) for unit in units)
    return Assigned(chosen, bits / sizes.weights, size, harm)


def _harm(unit: Unit, choice: Choice, harms: Harms) -> float:
    return 0.0 if choice is None else harms[unit.name, choice].nats


def _option(unit: Unit, choice: Choice, harms: Harms, sizes: Sizes, target: Target) -> Option:
    harm = _harm(unit, choice, harms)
    if target.kind == "kl":
        return Option(cost=sizes.bytes(unit, choice), weight=harm)
    size = sizes.bits(unit, choice) if target.kind == "bits" else sizes.bytes(unit, choice)
    return Option(cost=harm, weight=size)


def _limit(sizes: Sizes, target: Target) -> float:
    if target.kind == "bits":
        return target.value * sizes.weights
    return target.value - sizes.rest if target.kind == "size" else target.value


def _too_small(options: Sequence[Sequence[Option]], sizes: Sizes, target: Target) -> str:
    least = sum(min(option.weight for option in unit) for unit in options)
    if target.kind == "bits":
        smallest = f"--target-bits {math.ceil(least / sizes.weights * 1e4) / 1e4:g}"
    else:
        smallest = f"--target-size {math.ceil((least + sizes.rest) / 2**20 * 100) / 100:.2f}MiB"
    return (
        f"No assignment comes to {target}: the smallest with these schemes is {smallest}. Give at least "
        "that, or schemes of fewer bits by --schemes."
    )
