"""Relative error of every quantized layer: one row a kind of layer, one cell a block, darker is worse."""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.bench.report.checkpoint import ModuleError
from qdeploy.bench.report.collect import Variant
from qdeploy.bench.report.numbers import number
from qdeploy.bench.report.svg import WIDTH, Drawing, linear, tick_label, ticks

LEFT, RIGHT, TOP, ROW = 72, 4, 44, 20


def layer_panels(variants: Sequence[Variant]) -> list[str]:
    """One panel for each variant whose manifest holds errors of decoder layers; shading shared by all."""
    found = []
    for variant in variants:
        errors = variant.checkpoint.module_errors if variant.checkpoint else []
        in_blocks = [(e.block, e) for e in errors if e.block is not None]
        if in_blocks:
            found.append((variant.name, in_blocks))
    worst = max((e.error for _, errors in found for _, e in errors), default=0.0) or 1.0
    return [_panel(name, errors, worst) for name, errors in found]


def _panel(name: str, errors: list[tuple[int, ModuleError]], worst: float) -> str:
    kinds = list(dict.fromkeys(error.kind for _, error in errors))
    blocks = max(block for block, _ in errors) + 1
    bottom = TOP + ROW * len(kinds)
    drawing = Drawing(
        bottom + 62,
        f"Relative error per layer, {name}",
        f"{len(kinds)} kinds of layer by {blocks} blocks; the largest error is {number(worst)}.",
    )
    drawing.text(0, 14, "Relative error of each layer's output", "heading")
    drawing.text(0, 31, f"{name}  n = {len(errors)} layers", "label")
    x = linear(0, blocks, LEFT, WIDTH - RIGHT)
    for row, kind in enumerate(kinds):
        drawing.text(LEFT - 6, TOP + ROW * row + 14, kind, "tick", "end")
    for block, error in errors:
        y = TOP + ROW * kinds.index(error.kind)
        drawing.rect(x(block), y + 1, x(1) - x(0) - 0.6, ROW - 2, "heat", opacity=_shade(error.error, worst))
        drawing.tooltip(f"{error.name}: {number(error.error)}")
    for mark in ticks(0, blocks - 1, 6):
        if mark == int(mark):
            drawing.text(x(mark + 0.5), bottom + 14, tick_label(mark), "tick", "middle")
    drawing.text((LEFT + WIDTH - RIGHT) / 2, bottom + 28, "block", "tick", "middle")
    _legend(drawing, bottom + 42, worst)
    return drawing.markup()


def _shade(error: float, worst: float) -> float:
    return 0.06 + 0.94 * error / worst


def _legend(drawing: Drawing, y: float, worst: float) -> None:
    drawing.text(LEFT - 6, y + 10, "0", "tick", "end")
    steps = 20
    x = linear(0, steps, LEFT, LEFT + 160)
    for step in range(steps):
        drawing.rect(x(step), y, x(1) - x(0) + 0.3, 12, "heat", opacity=_shade(step, steps - 1))
    drawing.text(LEFT + 166, y + 10, f"{number(worst)} (worst)", "tick")
