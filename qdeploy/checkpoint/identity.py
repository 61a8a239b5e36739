"""What a run depends on, and in which words two runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qdeploy.checkpoint.manifest import Manifest

SHOWN = 6
"""Differences that a message lists; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Identity:
    """All that a block's codes depend on; blocks of two runs may be mixed only if it is the same.

    Attributes:
        qdeploy: version.
        methods: of the recipe those that other packages bring → package and version.
        recipe: every field, as in the manifest.
        model: SHA-256 of the model's weights and config.json.
        calibration: SHA-256 of the calibration tokens; None if no method looks at data.
    """

    qdeploy: str
    methods: dict[str, str]
    recipe: dict[str, Any]
    model: str
    calibration: str | None

    @classmethod
    def of(cls, manifest: Manifest) -> Identity:
        """The identity of the run that made a checkpoint."""
        return cls(
            qdeploy=manifest.provenance["qdeploy"],
            methods=manifest.provenance.get("methods", {}),
            recipe=manifest.recipe,
            model=manifest.model.sha256,
            calibration=manifest.calibration.sha256 if manifest.calibration else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON that `changes` takes."""
        return asdict(self)

    def changes(self, earlier: Mapping[str, Any]) -> str:
        """What differs from the `to_dict` of an earlier run, old → new; empty if nothing does.

        Fields of the recipe are named as in its file: `rules.0.scheme.group: 64 → 32`.
        """
        old, new = dict(_leaves("", earlier)), dict(_leaves("", self.to_dict()))
        different = [name for name in {**new, **old} if old.get(name) != new.get(name)]
        told = [self._tell(name, old.get(name), new.get(name)) for name in different]
        more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        return "; ".join(told[:SHOWN]) + more

    def _tell(self, name: str, old: Any, new: Any) -> str:
        if name == "model":
            return f"the content of the model {self.recipe['model']} (SHA-256 {_short(old)} → {_short(new)})"
        if name == "calibration":
            return f"the calibration tokens (SHA-256 {_short(old)} → {_short(new)})"
        return f"{name.removeprefix('recipe.')}: {_value(old)} → {_value(new)}"


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted name → value of everything in nested JSON."""
    if not isinstance(value, Mapping | list):
        yield name, value
        return
    for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _leaves(f"{name}.{key}" if name else str(key), part)


def _value(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"
