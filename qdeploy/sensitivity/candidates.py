"""Which schemes a unit may get: those asked for that the target engine has kernels for, and none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qdeploy.errors import UsageError
from qdeploy.schemes import Scheme, auto_group_size, preset
from qdeploy.sensitivity.units import Unit
from qdeploy.support import Support

DEFAULT = ("W3A16", "W4A16", "W4A16:32", "W4A16_ASYM", "W4A16_ASYM:32", "W8A16", "W8A8")

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

    def for_unit(self, unit: Unit) -> Scheme | None:
        """The scheme with the unit's group size; None where the one asked for does not divide its layers."""
        widths = [k for _, k in unit.layers.values()]
        if self.automatic and self.scheme.element is None:
            return auto_group_size(self.scheme, widths)
        size = self.scheme.group_size
        return None if size is not None and any(k % size for k in widths) else self.scheme


@dataclass(frozen=True)
class Choices:
    """What each unit may get.

    Attributes:
        of: unit → its schemes, without 16 bit.
        refused: candidate → why the first unit that may not get it may not, and how many may not.
    """

    of: Mapping[str, Sequence[Scheme]]
    refused: Mapping[str, tuple[str, int]] = field(default_factory=dict)


def choices(units: Sequence[Unit], candidates: Sequence[Candidate], supports: Supports) -> Choices:
    """Schemes for each unit that fit it and that the target serves natively.

    Raises:
        UsageError: nothing is left.
    """
    of: dict[str, list[Scheme]] = {unit.name: [] for unit in units}
    refused: dict[str, tuple[str, int]] = {}
    for unit in units:
        for candidate in candidates:
            scheme = candidate.for_unit(unit)
            objection = _objection(unit, candidate, scheme, supports)
            if objection is not None:
                first, count = refused.get(str(candidate), (objection, 0))
                refused[str(candidate)] = first, count + 1
            elif scheme is not None and scheme not in of[unit.name]:
                of[unit.name].append(scheme)
    if not any(of.values()):
        told = "; ".join(f"{name}: {reason}" for name, (reason, _) in refused.items())
        raise UsageError(f"Not one of the schemes can be used ({told}). Give others by --schemes.")
    return Choices(of, refused)


def _objection(unit: Unit, candidate: Candidate, scheme: Scheme | None, supports: Supports) -> str | None:
    """Why a unit cannot get a candidate; None if it can."""
    if scheme is None:
        size = candidate.scheme.group_size or 1
        misfit = next(f"{name} ({k} columns)" for name, (_, k) in unit.layers.items() if k % size)
        return f"groups of {size} do not divide {misfit}"
    support = supports(unit, scheme)
    return None if support.kind == "native" else f"no kernel ({support.reason})"
