"""Latency percentiles: a dot for each with its confidence interval, one panel a metric."""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.bench.records import Percentile
from qdeploy.bench.report.collect import Variant
from qdeploy.bench.report.metrics import Metric, measured
from qdeploy.bench.report.numbers import milliseconds
from qdeploy.bench.report.scales import Scale, linear, nice_top, ticks
from qdeploy.bench.report.svg import WIDTH, Drawing, axis, hue, shortened

LEFT, RIGHT, TOP = 44, 26, 34
ROW, LANE, HEADING = 62, 14, 17
NAME = 40
SHOWN = (0.5, 0.9, 0.99)


def latency_panels(variants: Sequence[Variant]) -> list[str]:
    """One panel for each metric that any variant has; percentiles refused are said to be so in words."""
    return [_panel(metric, variants) for metric in measured(variants)]


def _panel(metric: Metric, variants: Sequence[Variant]) -> str:
    rows = [(index, v, metric.of(v)) for index, v in enumerate(variants)]
    found = [(index, v, d) for index, v, d in rows if d is not None]
    highs = [p.high or p.value or 0 for _, _, d in found for p in d.percentiles if p.q in SHOWN]
    bottom = TOP + ROW * len(found)
    name = metric.short
    drawing = Drawing(
        bottom + 22, name, "Median, 90th and 99th percentile in milliseconds with 95 % confidence intervals."
    )
    drawing.text(0, 14, f"{name}, ms", "heading")
    scale = linear(0, nice_top(highs), LEFT, WIDTH - RIGHT)
    axis(drawing, scale, ticks(0, nice_top(highs), 4), TOP, bottom)
    for row, (index, variant, distribution) in enumerate(found):
        top = TOP + ROW * row
        drawing.text(0, top + 11, f"{shortened(variant.name, NAME)}  n = {distribution.count:,}", "label")
        for lane, percentile in enumerate(p for p in distribution.percentiles if p.q in SHOWN):
            _mark(drawing, scale, percentile, top + HEADING + LANE * lane + 6, index)
    return drawing.markup()


def _mark(drawing: Drawing, scale: Scale, percentile: Percentile, y: float, index: int) -> None:
    name = f"p{percentile.q * 100:g}"
    drawing.text(LEFT - 8, y + 4, name, "tick", "end")
    if percentile.value is None:
        drawing.text(LEFT, y + 4, f"needs {percentile.needed} requests", "refused")
        return
    if percentile.low is not None and percentile.high is not None:
        drawing.line(scale(percentile.low), y, scale(percentile.high), y, f"interval {hue(index)}")
    drawing.marker(index, scale(percentile.value), y)
    drawing.tooltip(f"{name} {milliseconds(percentile.value)}")
