"""What serving a variant takes over what it keeps, with the front of those that no other one beats."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from qdeploy.bench.records import Estimate
from qdeploy.bench.report.collect import Evidence
from qdeploy.bench.report.plots.frame import Frame
from qdeploy.bench.report.scales import Axis, fitted
from qdeploy.bench.report.tradeoff import Quantity, beaten_by, costs, front, kept, shared


@dataclass(frozen=True)
class ParetoPlot:
    """The plot of two quantities; `markup` is empty where fewer than two variants have both."""

    x: Quantity
    y: Quantity
    markup: str


def pareto_plots(evidence: Evidence) -> list[ParetoPlot]:
    """Every pair of a cost and of what is kept."""
    names = [variant.name for variant in evidence.variants]
    return [ParetoPlot(x, y, _plot(x, y, names)) for y in kept(evidence) for x in costs(evidence)]


def _plot(x: Quantity, y: Quantity, names: list[str]) -> str:
    places = shared(x, y)
    if len(places) < 2:
        return ""
    best = front(x, y)
    frame = Frame(
        title=f"{y.label} over {x.label}",
        up=_titled(y)[:1].upper() + _titled(y)[1:],
        across=_titled(x),
        x=_axis(x, places),
        y=_axis(y, places),
        entries=len(places),
        hint="Point at a variant, or go to it with Tab, for its figures.",
    )
    frame.drawing.path([(frame.x(a), frame.y(b)) for a, b in _staircase(x, y, best)], "front")
    for i in places:
        winners = beaten_by(i, x, y)
        note = f"beaten by {', '.join(names[j] for j in winners)}" if winners else "on the front"
        lines = [x.words(i), y.words(i), note]
        with frame.entry(i, names[i], "beaten" if winners else "on the front", lines):
            style = "hollow" if winners else ""
            frame.mark(i, x.values[i], y.values[i], ", ".join([names[i], *lines]), style)
    return frame.markup()


def _axis(quantity: Quantity, places: list[int]) -> Axis:
    values = [quantity.values[i] for i in places]
    return fitted([end for v in values for end in (v.value, v.low, v.high) if end is not None])


def _staircase(x: Quantity, y: Quantity, best: list[int]) -> list[tuple[float, float]]:
    """The corners of what is reached: between two variants of the front, the worse of either figure."""
    points = [(x.values[i], y.values[i]) for i in best]
    corners = [(points[0][0].value, points[0][1].value)]
    for (x1, y1), (x2, y2) in pairwise(points):
        corners += [(_worse(x, x1, x2), _worse(y, y1, y2)), (x2.value, y2.value)]
    return corners


def _worse(quantity: Quantity, one: Estimate, other: Estimate) -> float:
    return (min if quantity.more_is_better else max)(one.value, other.value)


def _titled(quantity: Quantity) -> str:
    return f"{quantity.label}, {quantity.unit} ({'more' if quantity.more_is_better else 'less'} is better)"
