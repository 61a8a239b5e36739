"""Relative error of every quantized layer: one row a kind of layer, one cell a block, darker is worse."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from qdeploy.bench.report.checkpoint import ModuleError
from qdeploy.bench.report.collect import Variant
from qdeploy.bench.report.numbers import number
from qdeploy.bench.report.scales import Axis, fitted, linear, tick_label, ticks
from qdeploy.bench.report.svg import LINE, WIDTH, Drawing

LEFT, RIGHT, TOP, ROW = 76, 4, 44, 20
PALEST = 0.06
HINT = "Point at a cell, or go to a row with Tab."


@dataclass(frozen=True)
class Grid:
    """The worst layer of each kind in each block: experts of a block share a cell."""

    name: str
    layers: int
    cells: dict[tuple[str, int], ModuleError]

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(kind for kind, _ in self.cells))

    @property
    def blocks(self) -> int:
        return max(block for _, block in self.cells) + 1


def layer_panels(variants: Sequence[Variant]) -> list[str]:
    """One panel for each variant whose manifest holds errors of decoder layers; shading shared by all."""
    grids = [grid for variant in variants if (grid := _grid(variant))]
    errors = [cell.error for grid in grids for cell in grid.cells.values()]
    if not errors:
        return []
    shades = fitted(errors, most=3, room=0.0)
    return [_panel(grid, shades) for grid in grids]


def _grid(variant: Variant) -> Grid | None:
    errors = variant.checkpoint.module_errors if variant.checkpoint else []
    cells: dict[tuple[str, int], ModuleError] = {}
    for error in errors:
        if error.block is not None:
            place = (error.kind, error.block)
            cells[place] = max(cells.get(place, error), error, key=lambda e: e.error)
    return Grid(variant.name, sum(e.block is not None for e in errors), cells) if cells else None


def _panel(grid: Grid, shades: Axis) -> str:
    bottom = TOP + ROW * len(grid.kinds)
    drawing = Drawing(
        bottom + 104,
        f"Relative error per layer, {grid.name}",
        f"{len(grid.kinds)} kinds of layer by {grid.blocks} blocks, {grid.layers} layers.",
    )
    drawing.text(0, 14, "Relative error of each layer's output", "heading")
    drawing.text(0, 31, f"{grid.name}  n = {grid.layers} layers", "label")
    reading = bottom + 86
    drawing.hint(0, reading, HINT)
    for row, kind in enumerate(grid.kinds):
        with drawing.reading(kind, _words(grid, kind), 0, reading):
            _row(drawing, grid, kind, TOP + ROW * row, shades)
    x = linear(0, grid.blocks, LEFT, WIDTH - RIGHT)
    for mark in ticks(0, grid.blocks - 1, 6):
        if mark == int(mark):
            drawing.text(x(mark + 0.5), bottom + LINE, tick_label(mark), "tick", "middle")
    drawing.text((LEFT + WIDTH - RIGHT) / 2, bottom + 28, "block", "tick", "middle")
    _legend(drawing, bottom + 42, shades)
    return drawing.markup()


def _row(drawing: Drawing, grid: Grid, kind: str, y: float, shades: Axis) -> None:
    x = linear(0, grid.blocks, LEFT, WIDTH - RIGHT)
    shade = shades.scale(PALEST, 1.0)
    drawing.rect(0, y, WIDTH, ROW, "hit")
    drawing.text(LEFT - 6, y + LINE, kind, "tick", "end")
    for block in range(grid.blocks):
        cell = grid.cells.get((kind, block))
        style, depth = ("heat", shade(cell.error)) if cell else ("absent", 1.0)
        drawing.rect(x(block), y + 1, x(1) - x(0) - 0.6, ROW - 2, style, opacity=depth)
        drawing.tooltip(f"{cell.name}: {number(cell.error)}" if cell else f"{kind}, block {block}: not known")


def _words(grid: Grid, kind: str) -> list[str]:
    """A row in words."""
    found = {block: cell.error for (of, block), cell in grid.cells.items() if of == kind}
    worst = max(found, key=lambda block: found[block])
    middle = statistics.median(found.values())
    return [f"{kind}: median {number(middle)}", f"worst {number(found[worst])}, block {worst}"]


def _legend(drawing: Drawing, y: float, shades: Axis) -> None:
    """The shades from the smallest to the largest, with what they stand for."""
    steps, right = 24, LEFT + 200
    x, across = linear(0, steps, LEFT, right), shades.scale(LEFT, right)
    shade = linear(0, steps - 1, PALEST, 1.0)
    for step in range(steps):
        drawing.rect(x(step), y, x(1) - x(0) + 0.3, 8, "heat", opacity=shade(step))
    for mark in shades.marks:
        drawing.text(across(mark), y + 20, tick_label(mark), "tick", "middle")
