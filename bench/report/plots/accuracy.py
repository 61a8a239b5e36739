"""Accuracy differences to the baseline as a forest plot: interval, zero, and the margin that decides."""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.bench.records import Estimate, TaskScore
from qdeploy.bench.report.collect import Variant
from qdeploy.bench.report.numbers import estimate_points, points
from qdeploy.bench.report.scales import linear, ticks
from qdeploy.bench.report.svg import WIDTH, Drawing, axis, hue, shortened

LEFT, RIGHT, TOP, ROW = 8, 8, 40, 42
TITLE = 24
"""Most characters of a task's title beside its figure."""


def forest_panels(variants: Sequence[Variant]) -> list[str]:
    """One panel for each variant with tasks compared; the same horizontal scale in all."""
    found = [
        (index, variant.name, [(task, task.difference) for task in variant.eval.tasks if task.difference])
        for index, variant in enumerate(variants)
        if variant.eval
    ]
    found = [entry for entry in found if entry[2]]
    reach = max((_reach(task, d) for _, _, rows in found for task, d in rows), default=0.01) * 1.05
    return [_panel(index, name, rows, reach) for index, name, rows in found]


def _reach(task: TaskScore, difference: Estimate) -> float:
    """How far the scale must go: of a part, which may have few items, only to its value."""
    if task.part_of:
        return abs(difference.value)
    ends = (difference.value, difference.low or 0, difference.high or 0, slack(task) or 0)
    return max(abs(end) for end in ends)


def slack(task: TaskScore) -> float | None:
    """The difference at which the verdict turns: the margin is a share of the baseline's accuracy."""
    if task.margin is None or task.baseline_accuracy is None:
        return None
    return task.margin * task.baseline_accuracy.value


def _panel(index: int, name: str, rows: list[tuple[TaskScore, Estimate]], reach: float) -> str:
    bottom = TOP + ROW * len(rows)
    drawing = Drawing(
        bottom + 36,
        f"Accuracy difference, {name}",
        "; ".join(f"{task.title}: {estimate_points(difference)}" for task, difference in rows),
    )
    drawing.text(0, 14, "Accuracy minus baseline, percentage points", "heading")
    drawing.text(0, 31, name, "label")
    x = linear(-reach * 100, reach * 100, LEFT, WIDTH - RIGHT)
    axis(drawing, x, ticks(-reach * 100, reach * 100, 6), TOP, bottom)
    drawing.line(x(0), TOP, x(0), bottom, "reference")
    for row, (task, difference) in enumerate(rows):
        y = TOP + ROW * row
        drawing.text(LEFT, y + 14, f"{shortened(task.title, TITLE)}  n = {task.items:,}", "label")
        limit = slack(task)
        if limit is not None:
            drawing.line(x(-limit * 100), y + 18, x(-limit * 100), y + ROW - 4, "margin")
        if difference.low is not None and difference.high is not None:
            low, high = max(difference.low, -reach), min(difference.high, reach)
            drawing.line(x(low * 100), y + 28, x(high * 100), y + 28, f"interval {hue(index)}")
        drawing.marker(index, x(difference.value * 100), y + 28)
        drawing.text(WIDTH - RIGHT, y + 14, points(difference.value), "tick over", "end")
    drawing.text(LEFT, bottom + 30, "worse", "tick")
    drawing.text(WIDTH - RIGHT, bottom + 30, "better", "tick", "end")
    return drawing.markup()
