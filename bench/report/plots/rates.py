"""Latency and completions over the request rate: where the knee is, and up to where an objective is met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qdeploy.bench.load.figures.slo import Limit, parse_slo
from qdeploy.bench.load.series.sweep import completion_rate
from qdeploy.bench.records import Estimate, LoadResult, Percentile, SeriesRecord
from qdeploy.bench.report.collect import Variant
from qdeploy.bench.report.compare import percentile
from qdeploy.bench.report.metrics import METRICS, Metric
from qdeploy.bench.report.numbers import number
from qdeploy.bench.report.plots.frame import BOTTOM, LEFT, RIGHT, TOP, Frame
from qdeploy.bench.report.scales import fitted
from qdeploy.bench.report.svg import WIDTH, hue

QUANTILES = (0.5, 0.9, 0.99)
KEYS = ("ttft_sched_ms", "tpot_ms", "e2e_sched_ms")
LIMITED = {"ttft_sched_ms": "ttft", "tpot_ms": "tpot", "e2e_sched_ms": "e2e"}
"""Metrics drawn, and the names that limits have for them."""

HINT = "Point at a curve, or go to it with Tab, for its knee."


@dataclass(frozen=True)
class Swept:
    """A variant with its runs at several rates; `index` is its place among all variants."""

    index: int
    name: str
    series: SeriesRecord


@dataclass(frozen=True)
class RatePlots:
    """Who was swept, completions, and latencies by percentile (a fraction); `first` is shown first."""

    found: list[Swept]
    completion: str
    latencies: list[tuple[float, list[str]]]
    first: float


def rate_plots(variants: Sequence[Variant]) -> RatePlots | None:
    """The plots over the rate, None where no variant was measured at several."""
    found = swept(variants)
    if not found:
        return None
    quantiles = stated_quantiles(found)
    asked = [q for q in quantiles for one in found for key in KEYS if _limits(one.series, key, q)]
    return RatePlots(
        found=found,
        completion=completion_panel(found),
        latencies=[(q, latency_panels(found, q)) for q in quantiles],
        first=max(asked, default=quantiles[0] if quantiles else 0.5),
    )


def swept(variants: Sequence[Variant]) -> list[Swept]:
    """The variants that were measured at several rates."""
    return [Swept(i, v.name, v.series) for i, v in enumerate(variants) if v.series]


def completion_panel(found: Sequence[Swept]) -> str:
    """Completed over offered rate, which is what the knee is fitted to."""
    rates = [rate for one in found for rate in _rates(one.series)]
    done = [completion_rate(run) for one in found for run in one.series.runs]
    frame = _frame(found, "Completed requests/s", "Completed over offered rate", done)
    frame.drawing.path([(frame.x(rate), frame.y(rate)) for rate in _both_fit(rates, done)], "reference")
    for one in found:
        with frame.entry(one.index, one.name, knee_words(one.series), series_words(one.series)):
            _knee(frame, one)
            frame.curve(one.index, [(run.rate or 0.0, completion_rate(run)) for run in one.series.runs])
            for run in one.series.runs:
                seen = Estimate(value=completion_rate(run))
                _mark(frame, one, run, seen, f"{number(seen.value)} requests/s completed")
    return frame.markup()


def latency_panels(found: Sequence[Swept], q: float) -> list[str]:
    """A percentile of each latency over the rate; one that a run is too small for is left out."""
    panels = [_latency_panel(metric, found, q) for metric in METRICS if metric.key in KEYS]
    return [panel for panel in panels if panel]


def stated_quantiles(found: Sequence[Swept]) -> list[float]:
    """The percentiles that any run can state, as fractions."""
    runs = [run for one in found for run in one.series.runs]
    return [q for q in QUANTILES if any(_stated(run, key, q) for run in runs for key in KEYS)]


def _latency_panel(metric: Metric, found: Sequence[Swept], q: float) -> str | None:
    points = {
        one.index: [(run, p) for run in one.series.runs if (p := _stated(run, metric.key, q))]
        for one in found
    }
    limits = sorted({limit.ms for one in found for limit in _limits(one.series, metric.key, q)})
    ends = [end for runs in points.values() for _, p in runs for end in (p.value, p.low, p.high) if end]
    if not ends:
        return None
    name = f"p{q * 100:g} {metric.short}"
    frame = _frame(found, f"{name}, ms", f"{name} over the rate", ends + limits)
    for ms in limits:
        frame.drawing.line(LEFT, frame.y(ms), WIDTH - RIGHT, frame.y(ms), "margin")
        frame.drawing.text(LEFT + 4, frame.y(ms) - 4, f"objective {number(ms)} ms", "tick over")
    for one in found:
        with frame.entry(one.index, one.name, knee_words(one.series), series_words(one.series)):
            _knee(frame, one)
            frame.curve(one.index, [(run.rate or 0.0, p.value or 0.0) for run, p in points[one.index]])
            for run, p in points[one.index]:
                seen = Estimate(value=p.value or 0.0, low=p.low, high=p.high)
                _mark(frame, one, run, seen, f"{name} {number(seen.value)} ms")
    return frame.markup()


def _frame(found: Sequence[Swept], up: str, title: str, values: Sequence[float]) -> Frame:
    rates = [rate for one in found for rate in _rates(one.series)]
    return Frame(title, up, "offered requests/s", fitted(values), fitted(rates), len(found), HINT)


def _mark(frame: Frame, one: Swept, run: LoadResult, seen: Estimate, what: str) -> None:
    """A run: hollow where it saturated the endpoint, ringed at the highest rate within the objective."""
    rate = run.rate or 0.0
    best = rate == one.series.best_rate
    if best:
        frame.drawing.circle(frame.x(rate), frame.y(seen.value), 8, f"ring {hue(one.index)}")
    remarks = (
        ["saturated"] * beyond_knee(run, one.series)
        + ["highest rate within the objective"] * best
        + run.invalid
    )
    tip = ", ".join([f"{one.name} at {number(rate)} requests/s: {what}", *remarks])
    frame.mark(one.index, Estimate(value=rate), seen, tip, "hollow" if beyond_knee(run, one.series) else "")


def _knee(frame: Frame, one: Swept) -> None:
    if one.series.saturating_rate is not None:
        x = frame.x(one.series.capacity)
        frame.drawing.line(x, TOP, x, BOTTOM, f"knee {hue(one.index)}")


def beyond_knee(run: LoadResult, series: SeriesRecord) -> bool:
    """Whether the rate saturates the endpoint by all runs together: a single one may have met a stall."""
    return series.saturating_rate is not None and (run.rate or 0.0) >= series.saturating_rate


def knee_words(series: SeriesRecord) -> str:
    """Where the endpoint is saturated, in a few words."""
    if series.saturating_rate is None:
        return f"knee above {number(series.kept_rate or max(_rates(series)))}/s"
    return f"knee {number(series.capacity)}/s"


def series_words(series: SeriesRecord) -> list[str]:
    """The same with the rates that enclose it, and the highest rate within the objective."""
    lines = [knee_words(series)]
    if series.saturating_rate is not None:
        kept = f"{number(series.kept_rate)}/s was kept, " if series.kept_rate else ""
        lines[0] += f": {kept}{number(series.saturating_rate)}/s saturated it"
    slo = next((run.slo for run in series.runs if run.slo and run.rate == series.best_rate), None)
    if slo:
        lines.append(
            f"objective met up to {number(series.best_rate or 0)}/s, goodput {number(slo.goodput.value)}/s"
        )
        lines.append(f"with 99 % confidence: {slo.verdict}")
    elif any(run.slo for run in series.runs):
        lines.append("objective met at none of these rates")
    return lines


def _rates(series: SeriesRecord) -> list[float]:
    return [run.rate or 0.0 for run in series.runs]


def _both_fit(rates: Sequence[float], done: Sequence[float]) -> tuple[float, float]:
    """The part of the line "completed = offered" that is in the drawing."""
    return min(rates), min(max(rates), max(done))


def _stated(run: LoadResult, key: str, q: float) -> Percentile | None:
    found = percentile(run.metrics.get(key), q)
    return found if found and found.value is not None else None


def _limits(series: SeriesRecord, key: str, q: float) -> list[Limit]:
    """What the objective asks of a percentile of a metric."""
    texts = {found.limit for run in series.runs if run.slo for found in run.slo.limits}
    limits = [limit for text in texts for limit in parse_slo(text)]
    return [limit for limit in limits if limit.metric == LIMITED[key] and math.isclose(limit.q, q)]
