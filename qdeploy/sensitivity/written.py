"""An assignment as a recipe that a person can read and edit."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from qdeploy.module_names import expert_of
from qdeploy.recipe import CalibrationConfig, Recipe
from qdeploy.scheme_spec import FixedFormat, parse_scheme, preset_fields
from qdeploy.sensitivity.assign import Assignment
from qdeploy.sensitivity.candidates import Choice
from qdeploy.sensitivity.units import Unit


def recipe_of(
    model: str, units: Sequence[Unit], chosen: Assignment, method: str, calibration: CalibrationConfig
) -> Recipe:
    """The recipe that gives every unit its scheme.

    There is a rule for each scheme and kind of unit, and at the end one for all that is left, with the scheme
    that most layers have.

    Args:
        method: stages joined by "+", the same for all.
        calibration: of the quantizing.

    Raises:
        RecipeError: the stages are not transforms and then a rounder.
        UnknownNameError: no such method.
    """
    layers: Counter[Choice] = Counter()
    for unit in units:
        layers[chosen[unit.name]] += len(unit.layers)
    ((common, _),) = layers.most_common(1)
    rules = [
        _rule(f"re:{pattern}", scheme, method)
        for pattern, scheme in _patterns(units, chosen)
        if scheme != common
    ]
    rules.append(_rule("Linear", common, method))
    return Recipe.model_validate(
        {"model": model, "rules": rules, "calibration": calibration.model_dump(mode="json")}
    )


def recipe_text(recipe: Recipe, comments: Iterable[str]) -> str:
    """YAML that loads as `recipe`, with only what a person needs, below comments."""
    lines = [*(f"# {comment}" for comment in comments), _line("model", recipe.model), "rules:"]
    for rule in recipe.rules:
        lines += [f"  - {_line('match', rule.match)}", f"    {_line('scheme', _scheme_fields(rule.scheme))}"]
        if rule.stages:
            lines.append(f"    {_line('stages', [stage.method for stage in rule.stages])}")
    lines.append(_line("calibration", recipe.calibration.model_dump(mode="json")))
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    flow = None if isinstance(value, dict | list) else False
    return yaml.safe_dump({key: value}, default_flow_style=flow, sort_keys=False, width=10**6).strip()


def _scheme_fields(spec: Any) -> str | dict[str, Any]:
    if spec is None:
        return "none"
    if isinstance(spec, FixedFormat) or (spec.activation_bits and spec == parse_scheme(spec.name)):
        return str(spec.name)
    fields = {"bits": spec.bits, "group": spec.group}
    optional = {"symmetric": (spec.symmetric, True), "activation_bits": (spec.activation_bits, None)}
    return fields | {name: value for name, (value, default) in optional.items() if value != default}


def _rule(match: str, scheme: Choice, method: str) -> dict[str, Any]:
    if scheme is None:
        return {"match": match, "scheme": None}
    fields = scheme.name if scheme.element is not None else preset_fields(scheme)
    return {"match": match, "scheme": fields, "stages": method.split("+")}


def _patterns(units: Sequence[Unit], chosen: Assignment) -> Iterable[tuple[str, Choice]]:
    """A regular expression for each kind of unit in each scheme, with that scheme."""
    blocks: Mapping[tuple[str, str], dict[Choice, list[str]]] = defaultdict(lambda: defaultdict(list))
    for unit in units:
        stack, _, number = unit.block.rpartition(".")
        blocks[stack, _inside(unit)][chosen[unit.name]].append(number)
    for (stack, inside), numbers in blocks.items():
        for scheme, own in numbers.items():
            some = own[0] if len(own) == 1 else f"({'|'.join(own)})"
            which = r"\d+" if len(numbers) == 1 else some
            yield rf"{re.escape(stack)}\.{which}\.{inside}", scheme


def _inside(unit: Unit) -> str:
    """What the names of a unit's layers have after the block's, in every block."""
    names = [name.removeprefix(f"{unit.block}.") for name in unit.layers]
    parent = names[0].rpartition(".")[0]
    if unit.experts:
        first = next(iter(unit.layers))
        expert = expert_of(first)
        assert expert is not None
        parent = expert[0].removeprefix(f"{unit.block}.")
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    leaf = re.escape(leaves[0]) if len(leaves) == 1 else f"({'|'.join(map(re.escape, leaves))})"
    path = [*(re.escape(part) for part in parent.split(".") if part), *([r"\d+"] if unit.experts else [])]
    return r"\.".join([*path, leaf])
