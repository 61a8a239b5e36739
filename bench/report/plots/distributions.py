"""Latencies as cumulative distributions: the share of requests within a time, all variants in one drawing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.records import Estimate, Percentile
from qdeploy.bench.report.collect import Variant
from qdeploy.bench.report.compare import percentile
from qdeploy.bench.report.metrics import METRICS, Metric
from qdeploy.bench.report.numbers import interval, milliseconds, number, samples
from qdeploy.bench.report.plots.frame import Frame
from qdeploy.bench.report.samples import latency_samples, steps
from qdeploy.bench.report.scales import Axis, fitted

SHOWN = (("ttft_sched_ms", "ttft_ms"), ("tpot_ms",), ("itl_ms",), ("icl_ms",), ("e2e_sched_ms", "e2e_ms"))
POOLED = ("itl_ms", "icl_ms")
"""Keys of the metrics drawn, each from the schedule where there is one."""

FAR = 10
MARKED = (0.5, 0.9, 0.99)
SHARES = Axis(0, 100, (0, 25, 50, 75, 90, 100))


def distribution_panels(variants: Sequence[Variant]) -> list[str]:
    """One panel a metric; a variant whose requests are not at hand has no curve."""
    found = [(index, variant, latency_samples(variant)) for index, variant in enumerate(variants)]
    present = {key for _, _, ordered in found for key in ordered}
    by_key = {metric.key: metric for metric in METRICS}
    keys = [next((key for key in choice if key in present), None) for choice in SHOWN]
    return [
        _panel(by_key[key], [(i, variant, ordered[key]) for i, variant, ordered in found if key in ordered])
        for key in keys
        if key
    ]


def _panel(metric: Metric, found: Sequence[tuple[int, Variant, NDArray[np.float64]]]) -> str:
    frame = Frame(
        title=f"Distribution of {metric.short}",
        up=f"Share of {'gaps' if metric.key in POOLED else 'requests'}, %",
        across=f"{metric.short}, ms",
        x=_time_axis([ordered for _, _, ordered in found]),
        y=SHARES,
        entries=len(found),
        hint="Point at a curve, or go to it with Tab, for its percentiles.",
    )
    for index, variant, ordered in found:
        marked = [p for q in MARKED if (p := percentile(metric.of(variant), q))]
        with frame.entry(index, variant.name, samples(len(ordered)), [_words(p) for p in marked]):
            frame.curve(index, _stairs(ordered))
            for p in marked:
                if p.value is not None:
                    at, share = _estimate(p, p.value), Estimate(value=100 * p.q)
                    frame.mark(index, at, share, f"{variant.name}: {_words(p)}")
    return frame.markup()


def _time_axis(found: Sequence[NDArray[np.float64]]) -> Axis:
    """An axis for values in ms; those far below a median, as of chunks read at once, are at its edge."""
    ends = [(max(ordered[0], np.median(ordered) / FAR), ordered[-1]) for ordered in found]
    return fitted([float(ms) for pair in ends for ms in pair])


def _stairs(ordered: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Corners of the step function, in ms and %: the share rises at each value."""
    values, shares = (array.tolist() for array in steps(ordered))
    risen = [100 * share for share in shares]
    before = [0.0, *risen[:-1]]
    corners = zip(values, before, risen, strict=True)
    return [corner for value, low, high in corners for corner in ((value, low), (value, high))]


def _words(p: Percentile) -> str:
    name = f"p{p.q * 100:g}"
    if p.value is None:
        return f"{name} needs {number(p.needed)} requests"
    bounds = "" if p.low is None or p.high is None else f" {interval(_estimate(p, p.value))}"
    return f"{name} {milliseconds(p.value)}{bounds}"


def _estimate(p: Percentile, value: float) -> Estimate:
    return Estimate(value=value, low=p.low, high=p.high)
