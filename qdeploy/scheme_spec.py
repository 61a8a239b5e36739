"""Number formats as a recipe writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from qdeploy import schemes
from qdeploy.errors import UsageError
from qdeploy.schemes import INT8_PER_TOKEN, PRESETS, Activations, Scheme


class Frozen(BaseModel):
    """A part of a recipe: it cannot change, and has no other fields than its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class IntegerFormat(Frozen):
    """Integer weights: a preset's name or these fields.

    Attributes:
        bits: bits of a weight code.
        group: columns that share a scale, "channel" for one scale per output channel, or "auto" for the
            largest size that divides every layer of the rule.
        symmetric: zero point in the middle of the grid.
        activation_bits: None for 16-bit activations; 8 for int8.
        static_activations: one scale for all activations, from the calibration, instead of one per token.
    """

    bits: Annotated[int, Field(ge=2, le=8)]
    group: Annotated[int, Field(ge=1)] | Literal["channel", "auto"] = 128
    symmetric: bool = True
    activation_bits: Literal[8] | None = None
    static_activations: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        return preset_fields(schemes.preset(value)) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_kernel(self) -> IntegerFormat:
        if self.activation_bits is None:
            if self.static_activations:
                raise UsageError("Activations of 16 bits have no static scale. Add activation_bits: 8.")
            return self
        needed: dict[str, Any] = {"symmetric": True}
        if self.bits != 4:
            needed |= {"bits": 8, "group": "channel"}
        elif self.static_activations:
            needed |= {"static_activations": False}
        wrong = [field for field, value in needed.items() if getattr(self, field) != value]
        if wrong:
            got = ", ".join(f"{field}: {str(getattr(self, field)).lower()}" for field in wrong)
            need = ", ".join(f"{field}: {str(needed[field]).lower()}" for field in wrong)
            raise UsageError(
                f"No engine has a kernel for int8 activations with weights of {got}. Use {need}, "
                "or a scheme with 16-bit activations."
            )
        return self

    @property
    def name(self) -> str:
        """The preset's name, or one made the same way."""
        static = "_STATIC" if self.static_activations else ""
        return f"W{self.bits}A{self.activation_bits or 16}{static}" + ("" if self.symmetric else "_ASYM")

    @property
    def _activations(self) -> Activations | None:
        if self.activation_bits is None:
            return None
        return PRESETS["W8A8_STATIC"].activations if self.static_activations else INT8_PER_TOKEN

    def resolve(self, in_features: Mapping[str, int]) -> Scheme:
        """The scheme for layers of these names and widths.

        Raises:
            UsageError: the group size does not divide some layer.
        """
        size = None if self.group == "channel" else self.group
        largest = schemes.GROUP_SIZES[0]
        scheme = Scheme(
            self.name, self.bits, largest if size == "auto" else size, self.symmetric, self._activations
        )
        if size == "auto":
            return schemes.auto_group_size(scheme, in_features.values())
        schemes.check_group_size(scheme, in_features)
        return scheme


class FixedFormat(Frozen):
    """A number format that leaves nothing to choose, written as its preset's name, e.g. `FP8_DYNAMIC`."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        return {"name": schemes.preset(value).name} if isinstance(value, str) else value

    @model_serializer
    def _dump(self) -> str:
        return self.name

    def resolve(self, in_features: Mapping[str, int]) -> Scheme:
        """The scheme for layers of these names and widths.

        Raises:
            UsageError: its groups do not divide some layer.
        """
        scheme = PRESETS[self.name]
        misfits = schemes.misfits(scheme, in_features)
        if misfits:
            raise UsageError(
                f"{self.name} has groups of {scheme.group_size} columns, which do not divide "
                f"{schemes.listed(misfits)} ({len(misfits)} of {len(in_features)} layers). Take a scheme "
                "without groups, such as FP8_DYNAMIC, or give those layers a rule with scheme: none."
            )
        return scheme


SchemeSpec = IntegerFormat | FixedFormat


def parse_scheme(value: Any) -> Any:
    """What a recipe's `scheme:` holds, as the model for it: a name is looked up, fields are integers'."""
    if isinstance(value, str):
        is_fixed = schemes.preset(value).element is not None
        return FixedFormat.model_validate(value) if is_fixed else IntegerFormat.model_validate(value)
    return IntegerFormat.model_validate(value) if isinstance(value, dict) else value


def from_flags(name: str, group_size: str | None, symmetric: bool | None) -> str | dict[str, Any]:
    """What a recipe's `scheme:` would hold for flags of the command line; None for the preset's own.

    Raises:
        UnknownNameError: no such preset.
        UsageError: it has no group size or grid to choose, or the size is no number.
    """
    preset = schemes.preset(name)
    if preset.element is not None:
        if symmetric is not None or group_size not in (None, "auto"):
            flag = "--group-size" if symmetric is None else "--symmetric and --asymmetric"
            raise UsageError(f"{preset.name} leaves nothing for {flag} to choose. Leave it out.")
        return preset.name
    fields = preset_fields(preset)
    if group_size is not None:
        fields["group"] = _group(group_size, preset)
    if symmetric is not None:
        fields["symmetric"] = symmetric
    return fields


def preset_fields(preset: Scheme) -> dict[str, Any]:
    """The fields of an integer preset."""
    return {
        "bits": preset.bits,
        "group": preset.group_size or "channel",
        "symmetric": preset.symmetric,
        "activation_bits": None if preset.activations is None else 8,
        "static_activations": preset.needs_data,
    }


def _group(text: str, preset: Scheme) -> int | str:
    text = text.lower()
    if text == "auto" and preset.group_size is None:
        return "channel"
    if text in ("channel", "auto"):
        return text
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"Group size {text!r} is neither a number nor 'channel' nor 'auto'.")
    return int(text)
