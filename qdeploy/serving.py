"""What every preset scheme is on every engine: native, converted or reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from qdeploy import registry
from qdeploy.errors import EntryPointError
from qdeploy.schemes import PRESETS, Scheme, auto_group_size, listed, misfits
from qdeploy.support import Kind, Support

Shapes = Mapping[str, tuple[int, int]]
"""Linear layer → (output, input) features."""

TYPICAL: Shapes = {"a typical layer": (4096, 4096)}
"""What is asked about without a model: every kernel's multiples and every group size divide it."""

BEST_FIRST: Sequence[Kind] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Served:
    """What a scheme is on an engine and a device."""

    scheme: Scheme
    engine: str
    device: str
    support: Support


def shapes_of(folder: Path) -> Shapes:
    """The linear layers of a model's blocks; no weight is read.

    Raises:
        CheckpointError: no readable model of a known architecture.
    """
    from qdeploy.modeling.blocks import find_blocks
    from qdeploy.modeling.checkpoint import CheckpointReader
    from qdeploy.modeling.skeleton import build_skeleton
    from qdeploy.pipeline import shapes

    return shapes(find_blocks(build_skeleton(CheckpointReader(folder))))


def serve_all(shapes: Shapes, devices: Sequence[str]) -> tuple[list[Served], list[EntryPointError]]:
    """Every preset on every installed engine and each device, and the exporters that cannot be used.

    A group size that does not divide all layers is taken as `--group-size auto` would choose it.

    Raises:
        UnknownNameError: no such device.
    """
    found, broken = [], []
    for engine in registry.names("exporters"):
        try:
            exporter = registry.load("exporters", engine)()
        except EntryPointError as error:
            broken.append(error)
            continue
        for preset in PRESETS.values():
            scheme = _fitting(preset, shapes)
            found += [Served(scheme, engine, d, _worst(exporter, scheme, shapes, d)) for d in devices]
    return found, broken


def _fitting(preset: Scheme, shapes: Shapes) -> Scheme:
    columns = {k for _, k in shapes.values()}
    fits = preset.group_size is None or all(k % preset.group_size == 0 for k in columns)
    if fits or preset.element is not None:  # whose groups are part of the format
        return preset
    return auto_group_size(preset, columns)


def _worst(exporter: Any, scheme: Scheme, shapes: Shapes, device: str) -> Support:
    """What the layer is that the engine does least for, and which if others are something else."""
    wrong = misfits(scheme, {name: k for name, (_, k) in shapes.items()})
    if wrong:
        return Support("reference", f"groups of {scheme.group_size} columns do not divide {listed(wrong)}")
    first: dict[tuple[int, int], str] = {}
    for layer, shape in shapes.items():
        first.setdefault(shape, layer)
    found = {name: exporter.support(scheme, *shape, gpu=device) for shape, name in first.items()}
    name = max(found, key=lambda name: BEST_FIRST.index(found[name].kind))
    worst: Support = found[name]
    alike = [support.reason for support in found.values() if support.kind == worst.kind]
    if len(alike) < len(found):
        n, k = shapes[name]
        return replace(worst, reason=f"{name} [{n}, {k}]: {worst.reason}")
    return replace(worst, reason=", ".join(dict.fromkeys(alike)))
