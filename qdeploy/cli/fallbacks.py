"""Layers that the method asked for could not solve, told in as many lines as a screen can take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qdeploy.module_names import expert_of

SHOWN = 8
"""Experts of a block that are named."""


def describe_fallbacks(modules: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each fallback in the manifest.

    Layers whose lines would differ by their names alone share one, and so do the experts of a block.
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    fallen: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for module in modules:
        experts, number = expert_of(module["name"]) or (module["name"], 0)
        numbers[experts].add(number)
        if module["fallback"]:
            fallen[experts].append(module)
    alike = Counter(_without_name(found[0]) for name, found in fallen.items() if name == found[0]["name"])
    for name, found in fallen.items():
        if name != found[0]["name"]:
            yield _experts(name, len(numbers[name]), found)
        elif others := alike.pop(_without_name(found[0]), 0):
            more = f" and {others - 1} more layers" if others > 1 else ""
            yield found[0]["fallback"].replace(name, f"{name}{more}")


def _without_name(module: Mapping[str, Any]) -> str:
    return str(module["fallback"]).replace(module["name"], "")


def _experts(name: str, count: int, fallen: Sequence[Mapping[str, Any]]) -> str:
    """The experts of one block, those with the fewest tokens first."""
    tokens = {_number(module): module["tokens"] or 0 for module in fallen}
    fewest = sorted(tokens, key=lambda number: (tokens[number], number))
    shown = ", ".join(f"{number} ({tokens[number]} tokens)" for number in fewest[:SHOWN])
    more = f" and {len(fewest) - SHOWN} more" if len(fewest) > SHOWN else ""
    first = next(module["fallback"] for module in fallen if _number(module) == fewest[0])
    return f"{len(tokens)} of {count} experts of {name}: {shown}{more}. The first: {first}"


def _number(module: Mapping[str, Any]) -> int:
    expert = expert_of(module["name"])
    assert expert is not None
    return expert[1]
