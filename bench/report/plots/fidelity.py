"""KL divergence to the baseline, window by window of the text: is the loss even, or in a few places?"""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.bench.records import Fidelity
from qdeploy.bench.report.collect import Variant
from qdeploy.bench.report.numbers import number
from qdeploy.bench.report.scales import Scale, linear, nice_top, ticks
from qdeploy.bench.report.svg import WIDTH, Drawing, side_axis

LEFT, RIGHT, TOP, HEIGHT = 48, 10, 44, 120


def kl_panels(variants: Sequence[Variant]) -> list[str]:
    """One panel for each variant compared with the baseline; the same vertical scale in all."""
    found = [
        (index, variant.name, variant.eval.fidelity)
        for index, variant in enumerate(variants)
        if variant.eval and variant.eval.fidelity and variant.eval.fidelity.per_window_kl
    ]
    top = nice_top([kl for _, _, fidelity in found for kl in fidelity.per_window_kl])
    return [_panel(index, name, fidelity, top) for index, name, fidelity in found]


def _panel(index: int, name: str, fidelity: Fidelity, top: float) -> str:
    values = fidelity.per_window_kl
    bottom = TOP + HEIGHT
    drawing = Drawing(
        bottom + 32,
        f"KL per window, {name}",
        f"Mean KL lower bound of {len(values)} windows, nats per token; at most {number(max(values))}.",
    )
    drawing.text(0, 14, "KL lower bound per window, nats/token", "heading")
    method = f"{fidelity.method}, K = {fidelity.top_k}"
    drawing.text(0, 31, f"{name}  n = {len(values)} windows, {method}", "label")
    y = linear(0, top, bottom, TOP)
    side_axis(drawing, y, ticks(0, top, 4), LEFT, WIDTH - RIGHT)
    _mean(drawing, fidelity, y)
    x = linear(0, len(values), LEFT, WIDTH - RIGHT)
    for window, value in enumerate(values):
        drawing.marker(index, x(window + 0.5), y(value), radius=3.5)
        drawing.tooltip(f"window {window + 1}: {number(value)}")
    drawing.text(
        (LEFT + WIDTH - RIGHT) / 2, bottom + 18, "windows in the order of the text", "tick", "middle"
    )
    return drawing.markup()


def _mean(drawing: Drawing, fidelity: Fidelity, y: Scale) -> None:
    mean = fidelity.kl_lower_bound
    if mean is None:
        return
    if mean.low is not None and mean.high is not None:
        drawing.rect(LEFT, y(mean.high), WIDTH - RIGHT - LEFT, y(mean.low) - y(mean.high), "band")
    drawing.line(LEFT, y(mean.value), WIDTH - RIGHT, y(mean.value), "reference")
