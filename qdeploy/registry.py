"""Named things found through entry points: methods, exporters, engines, commands.

qdeploy registers its own in `pyproject.toml` exactly as a third party would, and nothing is imported before
it is asked for.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qdeploy.errors import UnknownNameError


@cache
def _group(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def names(kind: str) -> list[str]:
    """Registered names of a kind ("methods", "exporters", "engines", "commands"), sorted."""
    return sorted(_group(f"qdeploy.{kind}"))


def load(kind: str, name: str) -> Any:
    """Import and return the object registered as `name`.

    Raises:
        UnknownNameError: nothing of that name is registered; the message names the nearest.
    """
    found = _group(f"qdeploy.{kind}").get(name)
    if found is None:
        raise UnknownNameError(kind.removesuffix("s"), name, names(kind))
    return found.load()
