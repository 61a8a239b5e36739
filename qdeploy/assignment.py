"""Which layer gets which scheme and method: a recipe's rules applied to the names of a model's layers."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from qdeploy.errors import RecipeError
from qdeploy.methods.base import refusal
from qdeploy.methods.tuning import tunes
from qdeploy.module_names import expert_of
from qdeploy.planned import Planned, common_transforms
from qdeploy.recipe import Recipe, Rule
from qdeploy.schemes import Scheme

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Siblings that engines run as one matrix, and so must be stored alike."""


def resolve_schemes(recipe: Recipe, linears: Mapping[str, tuple[int, int]]) -> dict[str, Planned]:
    """Decide for each linear layer.

    Args:
        recipe: the rules.
        linears: module name → (output, input) features.

    Returns:
        Module name → what is done to it, in the order of `linears`; layers that stay in 16 bit are left out.

    Raises:
        UsageError: a group size does not divide some layer.
        RecipeError: a rule never applies, nothing is quantized, a method cannot make a number format, or
            layers that engines fuse differ.
    """
    chosen = {name: recipe.rule_for(name, "Linear") for name in linears}
    resolved: dict[str, Planned] = {}
    for rule in recipe.rules:
        names = [name for name, found in chosen.items() if found is rule]
        _check_applies(rule, names, linears)
        if rule.scheme is not None:
            scheme = rule.scheme.resolve({name: linears[name][1] for name in names})
            *transforms, rounder = (stage.config for stage in rule.stages if stage.config != rule.rotation)
            planned = Planned(scheme, rounder, tuple(transforms), rule.rotation)
            _check_format(rule, planned)
            resolved.update(dict.fromkeys(names, planned))
    if not resolved:
        raise RecipeError("The recipe quantizes no layer. Add a rule with match: Linear and a scheme.")
    _check_cache(recipe, resolved)
    _check_fused(linears, resolved)
    _check_experts(linears, resolved)
    return {name: resolved[name] for name in linears if name in resolved}


def needs_data(recipe: Recipe, plan: Iterable[Planned]) -> bool:
    """Whether calibration text must run through layers that are treated so."""
    return recipe.kv_cache is not None or any(planned.needs_data for planned in plan)


def _check_applies(rule: Rule, names: Sequence[str], linears: Mapping[str, Any]) -> None:
    if names:
        return
    hidden = sum(rule.matches(name, "Linear") for name in linears)
    if hidden:
        raise RecipeError(
            f"Rule {rule.match!r} never applies: earlier rules match all of its {hidden} layers. Move it up."
        )
    near = difflib.get_close_matches(rule.match, linears, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else f" Layers have names like {next(iter(linears), '')!r}."
    raise RecipeError(f"Rule {rule.match!r} matches no layer of the model.{hint}")


def _check_format(rule: Rule, planned: Planned) -> None:
    reason = refusal(planned.rounder, planned.scheme)
    if planned.bases and planned.scheme.activations is not None:
        reason = "in another basis activations stay in 16 bits; take a scheme such as W4A16"
    if planned.bases and tunes(planned.rounder):
        reason = "it tunes layers as they run, not in another basis; take another rounder, or rotation"
    if reason is not None:
        raise RecipeError(
            f"Rule {rule.match!r}: {planned.method} cannot make {planned.scheme.describe()}: {reason}."
        )


def _check_cache(recipe: Recipe, resolved: Mapping[str, Planned]) -> None:
    """Engines read of the cache's format where they read of that of packed layers."""
    if recipe.kv_cache is not None and all(planned.without_kernel for planned in resolved.values()):
        methods = ", ".join(sorted({planned.method for planned in resolved.values()}))
        raise RecipeError(
            f"kv_cache {recipe.kv_cache} needs a layer that is stored packed, and {methods} stores all in 16 "
            "bits. Leave kv_cache out, or take a method that engines have kernels for."
        )


def _check_fused(linears: Mapping[str, Any], resolved: Mapping[str, Planned]) -> None:
    for parent, siblings in fused_sets(linears):
        found = {name: resolved[name].scheme if name in resolved else None for name in siblings}
        if len(set(found.values())) > 1:
            leaves = {name.rpartition(".")[2]: scheme for name, scheme in found.items()}
            stored = ", ".join(f"{s}: {v.describe() if v else '16 bit'}" for s, v in leaves.items())
            raise RecipeError(
                f"{parent}: engines run {', '.join(leaves)} as one matrix, so they need one scheme; got "
                f"{stored}. Give them one rule."
            )
        common_transforms(siblings, resolved)


def fused_sets(linears: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """Name of a module and its layers that engines run as one matrix, those that are there."""
    for name in linears:
        parent, _, leaf = name.rpartition(".")
        for siblings in FUSED:
            if leaf == siblings[0]:
                yield parent, [full for s in siblings if (full := f"{parent}.{s}") in linears]


def fused_with(name: str, linears: Collection[str]) -> list[str]:
    """The layers that engines run as one matrix with this one, itself among them."""
    parent, _, leaf = name.rpartition(".")
    siblings = next((set_ for set_ in FUSED if leaf in set_), (leaf,))
    return [full for sibling in siblings if (full := f"{parent}.{sibling}") in linears]


def _check_experts(linears: Mapping[str, Any], resolved: Mapping[str, Planned]) -> None:
    stored: dict[str, dict[Scheme | None, str]] = {}
    for name in linears:
        experts = expert_of(name)
        if experts is not None:
            scheme = resolved[name].scheme if name in resolved else None
            stored.setdefault(experts[0], {}).setdefault(scheme, name)
    for block, found in stored.items():
        if len(found) > 1:
            told = ", ".join(f"{n}: {s.describe() if s else '16 bit'}" for s, n in found.items())
            raise RecipeError(
                f"{block}: engines run all experts of a block at once, so they need one scheme; got {told}. "
                "Give them one rule."
            )
