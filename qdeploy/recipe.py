"""The recipe: what is done to which layers of which model, with which calibration data.

A recipe file and command-line flags end in the same object; its canonical JSON is hashed into the manifest.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from qdeploy import scheme_spec
from qdeploy.errors import RecipeError
from qdeploy.files import sha256_text
from qdeploy.methods.rotation import Rotation
from qdeploy.scheme_spec import Frozen, SchemeSpec, parse_scheme
from qdeploy.validation import explain


class Source(Frozen):
    """One text of the calibration, written NAME or NAME@WEIGHT.

    No name and no path of a text that can be read ends in @ and a number, so neither is ever taken for the
    other.

    Attributes:
        name: "builtin", one of its parts ("builtin-prose", "builtin-code", "builtin-chat"), "wikitext2",
            "c4", or a .txt, .jsonl or .parquet file.
        weight: samples are shared out in proportion to it.
    """

    name: str
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name, _, weight = value.rpartition("@")
        try:
            return {"name": name, "weight": float(weight)} if name else {"name": value}
        except ValueError:
            return {"name": value}

    @model_serializer
    def _dump(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.name}@{str(self.weight).removesuffix('.0')}"


class CalibrationConfig(Frozen):
    """Which text the statistics are gathered on.

    Attributes:
        source: the texts; in a recipe one, or a list.
        samples: number of token sequences.
        sequence_length: tokens in each.
        seed: chooses the sequences.
    """

    source: tuple[Source, ...] = (Source(name="builtin"),)
    samples: Annotated[int, Field(ge=1)] = 128
    sequence_length: Annotated[int, Field(ge=8)] = 512
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("source", mode="before")
    @classmethod
    def _one_needs_no_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("source")
    @classmethod
    def _not_empty(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        if not sources:
            raise ValueError("give at least one")
        return sources

    @field_serializer("source")
    def _dump_source(self, sources: tuple[Source, ...]) -> str | list[str]:
        names = [str(source) for source in sources]
        return names[0] if len(names) == 1 else names

    def beside(self, folder: Path) -> CalibrationConfig:
        """The same with files that exist in `folder` made independent of the working directory."""
        sources = tuple(
            source.model_copy(update={"name": str((folder / source.name).resolve())})
            if (folder / source.name).is_file()
            else source
            for source in self.source
        )
        return self.model_copy(update={"source": sources})


class Stage(Frozen):
    """A method and its knobs: in YAML, `gptq` or `gptq: {damp: 0.02}`.

    Attributes:
        method: registered name.
        config: the method's config dataclass.
    """

    method: str
    config: Any

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, dict) or len(value) != 1:
            raise RecipeError(f"A stage is a method's name or one `name: {{knob: value}}`, not {value!r}.")
        [(method, knobs)] = value.items()
        return {"method": method, "config": _configure(str(method), knobs or {})}

    @model_serializer
    def _dump(self) -> dict[str, Any]:
        return {self.method: dataclasses.asdict(self.config)}


WHOLE = {"quip": ("incoherence", "ldlq"), "quarot": ("rotation", "gptq")}
"""Names of papers that are stacks of stages, and the stages."""


def _spelled_out(stages: Any) -> Iterator[Any]:
    """Stages with the names of whole papers replaced by theirs; what is no list is left to validation."""
    for stage in stages if isinstance(stages, list | tuple) else [stages]:
        yield from WHOLE.get(stage, (stage,)) if isinstance(stage, str) else (stage,)


def _check_order(match: str, stages: Sequence[Stage]) -> None:
    """Rotation, transforms that scale channels, those that change the basis, then one rounder."""
    from qdeploy.methods.base import is_rounder
    from qdeploy.methods.basis import BASES

    if any(isinstance(stage.config, Rotation) for stage in stages[1:]):
        given = ", ".join(stage.method for stage in stages)
        raise RecipeError(
            f"Rule {match!r}: rotation turns the model before anything else is done; put it first, and once. "
            f"Its stages: {given}."
        )
    kinds = ["rounder" if is_rounder(stage.config) else "transform" for stage in stages]
    if kinds and kinds[-1] == "rounder" and "rounder" not in kinds[:-1]:
        turned = [type(stage.config) in BASES for stage in stages[:-1]]
        if turned == sorted(turned):
            return
        told = ", ".join(stage.method for stage in stages)
        raise RecipeError(
            f"Rule {match!r}: channels are scaled in the layer's own basis. Put what changes it last of the "
            f"transforms; its stages: {told}."
        )
    given = ", ".join(f"{stage.method} ({kind})" for stage, kind in zip(stages, kinds, strict=True)) or "none"
    raise RecipeError(
        f"Rule {match!r} needs any number of transforms, then one rounder, such as gptq; its stages: {given}."
    )


def _configure(method: str, knobs: Any) -> Any:
    from qdeploy.methods.registered import config_of

    config = config_of(method)
    if not isinstance(knobs, dict):
        raise RecipeError(f"{method}: knobs are written `{method}: {{knob: value}}`, not {knobs!r}.")
    known = [field.name for field in dataclasses.fields(config)]
    for knob in knobs:
        if knob not in known:
            near = difflib.get_close_matches(str(knob), known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise RecipeError(f"{method} has no knob {knob!r}.{hint} It has: {', '.join(known)}.")
    try:
        return config(**knobs)
    except ValidationError as error:
        raise RecipeError(f"{method}: {explain(error, config)}") from error


class Rule(Frozen):
    """What is done to the layers that `match` names.

    Attributes:
        match: "Linear" (every linear of the decoder blocks), a module's name, or "re:" and a regular
            expression that the whole name must match.
        scheme: the number format, None to leave the layers in 16 bit (`none` in YAML).
        stages: methods in order; the last one makes the codes.
    """

    match: str
    scheme: SchemeSpec | None
    stages: tuple[Stage, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if isinstance(value.get("scheme"), str) and value["scheme"].lower() == "none":
            value["scheme"] = None
        if value.get("scheme") is not None:
            value["stages"] = list(_spelled_out(value.get("stages", ["gptq"])))
        return value

    @field_validator("scheme", mode="before")
    @classmethod
    def _parse_scheme(cls, value: Any) -> Any:
        return parse_scheme(value)

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if self.scheme is None and self.stages:
            raise RecipeError(f"Rule {self.match!r} has scheme none and so can have no stages.")
        if self.scheme is not None:
            _check_order(self.match, self.stages)
        if self.match.startswith("re:"):
            try:
                re.compile(self.match[3:])
            except re.error as error:
                raise RecipeError(f"Rule {self.match!r} is not a regular expression: {error}.") from error
        return self

    @property
    def rotation(self) -> Rotation | None:
        """The first stage's config, if that is a rotation."""
        first = self.stages[0].config if self.stages else None
        return first if isinstance(first, Rotation) else None

    def matches(self, name: str, class_name: str) -> bool:
        """Whether the rule is meant for this module."""
        if self.match.startswith("re:"):
            return re.fullmatch(self.match[3:], name) is not None
        if self.match == class_name:
            return name.rpartition(".")[2] != "lm_head"
        return self.match == name


class Recipe(Frozen):
    """Everything that decides what a quantized checkpoint holds.

    Attributes:
        model: folder or hub name of the 16-bit checkpoint.
        rules: the first that matches a layer decides; a layer that none matches stays in 16 bit.
        calibration: the text.
        true_sequential: inside a block, each linear sees the quantized outputs of those before it.
        kv_cache: "fp8" lets engines keep keys and values in E4M3, with scales from the calibration; None
            (`none` in YAML) leaves them in 16 bits.
    """

    model: str
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    calibration: CalibrationConfig = CalibrationConfig()
    true_sequential: bool = True
    kv_cache: Literal["fp8"] | None = None

    @field_validator("kv_cache", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return None if value.lower() == "none" else value.lower()

    @classmethod
    def from_yaml(cls, path: Path, model: str | None = None) -> Recipe:
        """Read a recipe file; `model` takes the place of the one it names.

        Raises:
            RecipeError: the file is missing, is no YAML mapping, or holds something that is not valid.
        """
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"Cannot read the recipe {path}: {error}.") from error
        except yaml.YAMLError as error:
            raise RecipeError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(fields, dict):
            raise RecipeError(f"{path} must be a mapping with the keys {', '.join(cls.model_fields)}.")
        if model is not None:
            fields["model"] = model
        return _validated(fields, str(path))

    @classmethod
    def from_flags(
        cls,
        model: str,
        *,
        scheme: str = "W4A16",
        method: str = "gptq",
        group_size: str | None = None,
        symmetric: bool | None = None,
        kv_cache: str | None = None,
        calibration: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """One rule for every linear, from the flags of `qdeploy quantize`.

        Args:
            model: folder or hub name.
            scheme: preset name.
            method: registered methods, joined by "+": any transforms, then a rounder.
            group_size: a number, "channel" or "auto"; None for the preset's.
            symmetric: None for the preset's.
            kv_cache: see `Recipe`.
            calibration: fields of CalibrationConfig; what is left out keeps its default.
        """
        spec = scheme_spec.from_flags(scheme, group_size, symmetric)
        rule = {"match": "Linear", "scheme": spec, "stages": method.split("+")}
        fields = {
            "model": model,
            "rules": [rule],
            "kv_cache": kv_cache,
            "calibration": dict(calibration or {}),
        }
        return _validated(fields, "flags")

    @model_validator(mode="after")
    def _check_rotations(self) -> Recipe:
        rules = [rule for rule in self.rules if rule.scheme is not None]
        if len({rule.rotation for rule in rules}) > 1:
            told = "; ".join(f"{rule.match!r}: {rule.rotation or 'none'}" for rule in rules)
            raise RecipeError(
                "rotation turns the residual stream that all layers share, so all rules with a scheme need "
                f"the same one, or none; got {told}."
            )
        return self

    @property
    def rotation(self) -> Rotation | None:
        """What the whole model is turned by before it is quantized."""
        return next((rule.rotation for rule in self.rules if rule.scheme is not None), None)

    def to_yaml(self) -> str:
        """The canonical text; reading it back gives an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def sha256(self) -> str:
        """Hash of the canonical JSON."""
        return sha256_text(json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")))

    def rule_for(self, name: str, class_name: str) -> Rule | None:
        """The first rule that matches the module; None where none does."""
        return next((rule for rule in self.rules if rule.matches(name, class_name)), None)


def _validated(fields: Mapping[str, Any], origin: str) -> Recipe:
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {explain(error, Recipe)}") from error
