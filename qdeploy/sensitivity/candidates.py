"""Which schemes a unit may get: those asked for that the target engine has kernels for, and none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qdeploy.errors import UsageError
from qdeploy.schemes import Scheme, auto_group_size, check_group_size, listed, misfits, preset
from qdeploy.sensitivity.units import Unit
from qdeploy.support import Support

DEFAULT = ("W3A16", "W4A16", "W4A16_ASYM", "W8A16", "W8A8")

Choice = Scheme | None
"""A scheme, or None for 16 bit."""

Supports = Callable[[Unit, Scheme], Support]
"""How the target engine runs a unit in a scheme."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scheme as asked for: a preset and a group size, written "W4A16" or "W4A16:32".

    Attributes:
        scheme: the preset; its group size counts only where `automatic` is false.
        automatic: take for each unit the largest group size that divides its layers.
    """

    scheme: Scheme
    automatic: bool = True

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Read "PRESET", "PRESET:GROUP" or "PRESET:channel".

        Raises:
            UnknownNameError: no such preset.
            UsageError: the group size is not one.
        """
        name, colon, group = text.partition(":")
        scheme = preset(name.strip())
        if not colon:
            return cls(scheme)
        if scheme.element is not None:
            raise UsageError(f"{text!r}: {scheme.name} has no group size to choose. Write {scheme.name}.")
        if group.lower() == "channel":
            return cls(replace(scheme, group_size=None), automatic=False)
        if not group.isdecimal() or int(group) == 0 or scheme.group_size is None:
            needs = "one scale per channel" if scheme.group_size is None else "a number or channel"
            raise UsageError(f"{text!r}: the group size of {scheme.name} is {needs}. Write {scheme.name}.")
        return cls(replace(scheme, group_size=int(group)), automatic=False)

    def __str__(self) -> str:
        return (
            self.scheme.name
            if self.automatic
            else f"{self.scheme.name}:{self.scheme.group_size or 'channel'}"
        )

    def for_unit(self, unit: Unit) -> Scheme:
        """The scheme with the unit's group size.

        Raises:
            UsageError: a group size that was asked for does not divide the unit's layers.
        """
        widths = {name: k for name, (_, k) in unit.layers.items()}
        if self.scheme.element is not None:
            return self.scheme
        if self.automatic:
            return auto_group_size(self.scheme, widths.values())
        check_group_size(self.scheme, widths)
        return self.scheme


@dataclass(frozen=True)
class Choices:
    """What each unit may get.

    Attributes:
        of: unit → its schemes, without 16 bit.
        refused: scheme → the target's reason for the first unit, and how many units it refuses.
    """

    of: Mapping[str, Sequence[Scheme]]
    refused: Mapping[str, tuple[str, int]] = field(default_factory=dict)


def choices(units: Sequence[Unit], candidates: Sequence[Candidate], supports: Supports) -> Choices:
    """Schemes for each unit that the target serves natively.

    Raises:
        UsageError: a group size that was asked for does not divide some layer, or nothing is left.
    """
    of: dict[str, list[Scheme]] = {unit.name: [] for unit in units}
    refused: dict[str, tuple[str, int]] = {}
    for unit in units:
        for scheme in dict.fromkeys(candidate.for_unit(unit) for candidate in candidates):
            wrong = misfits(scheme, {name: k for name, (_, k) in unit.layers.items()})
            support = supports(unit, scheme)
            if wrong:
                support = Support("reference", f"its groups do not divide {listed(wrong)}")
            if support.kind == "native":
                of[unit.name].append(scheme)
            else:
                reason, count = refused.get(scheme.name, (support.reason, 0))
                refused[scheme.name] = reason, count + 1
    if not any(of.values()):
        told = "; ".join(f"{name}: {reason}" for name, (reason, _) in refused.items())
        raise UsageError(
            f"The target has a kernel for none of the schemes ({told}). Give others by --schemes."
        )
    return Choices(of, refused)
