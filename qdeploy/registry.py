"""Named things found through entry points: methods, exporters, engines, commands.

qdeploy registers its own in `pyproject.toml` exactly as a third party would, and nothing is imported before
it is asked for.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qdeploy.errors import EntryPointError, UnknownNameError


@cache
def _group(kind: str) -> dict[str, list[EntryPoint]]:
    found = defaultdict(list)
    for point in entry_points(group=f"qdeploy.{kind}"):
        found[point.name].append(point)
    return dict(found)


def names(kind: str) -> list[str]:
    """Registered names of a kind ("methods", "exporters", "engines", "commands"), sorted."""
    return sorted(_group(kind))


def load(kind: str, name: str) -> Any:
    """Import and return the object registered as `name`.

    Raises:
        UnknownNameError: nothing of that name is registered; the message names the nearest.
        EntryPointError: its module cannot be imported, or several packages register the name.
    """
    if name not in _group(kind):
        raise UnknownNameError(kind.removesuffix("s"), name, names(kind))
    point, *others = _group(kind)[name]
    if others:
        raise EntryPointError(
            kind.removesuffix("s"), name, origin(kind, name), "several packages register the name"
        )
    try:
        return point.load()
    except Exception as error:  # what runs is anybody's module
        reason = f"importing {point.value} failed ({type(error).__name__}: {error})"
        raise EntryPointError(kind.removesuffix("s"), name, origin(kind, name), reason) from error


def origin(kind: str, name: str) -> str:
    """The packages that register `name`, with their versions."""
    dists = [point.dist for point in _group(kind)[name]]
    return " and ".join(f"{dist.name} {dist.version}" for dist in dists if dist)


def name_of(kind: str, item: Any) -> str | None:
    """The name that `item`, which is imported, is registered under; None if it is not."""
    for name, points in _group(kind).items():
        for point in points:
            if getattr(sys.modules.get(point.module), point.attr, None) is item:
                return name
    return None
