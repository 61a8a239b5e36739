"""A series of load runs as a table for the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from qdeploy.bench.load.series.sweep import completion_rate, saturated
from qdeploy.bench.records import LoadResult, SeriesRecord

LATENCIES = (("ttft_sched_ms", "TTFT"), ("tpot_ms", "TPOT"), ("e2e_sched_ms", "E2E"))


def render_series(series: SeriesRecord) -> RenderableType:
    """One row a rate, p50 / p99 of the latencies, then the knee and the best rate."""
    shown = [(key, name) for key, name in LATENCIES if key in series.runs[0].metrics]
    table = Table(box=SIMPLE_HEAD, caption="Requests/s; latencies from the time due, p50 / p99 in ms.")
    for column in ("rate", "completed", *(name for _, name in shown), "tokens/s", "failed", ""):
        table.add_column(column, justify="right")
    for result in series.runs:
        table.add_row(
            f"{result.rate:.3g}",
            f"{completion_rate(result):.3g}",
            *(_median_and_tail(result, key) for key, _ in shown),
            f"{result.output_token_throughput:.0f}",
            str(result.failed),
            _remark(result),
        )
    lines = [_knee_line(series)]
    if series.runs[0].slo:
        lines.append(_best_line(series))
    return Group(table, *lines)


def _median_and_tail(result: LoadResult, key: str) -> str:
    by_q = {p.q: p.value for p in result.metrics[key].percentiles}
    return " / ".join("–" if value is None else f"{value:.0f}" for value in (by_q[0.5], by_q[0.99]))


def _remark(result: LoadResult) -> str:
    remarks = ["saturated"] if saturated(result) else []
    if result.slo:
        remarks.append("meets" if result.slo.met else "misses")
    if result.client_limited:
        remarks.append("[red]client-limited[/]")
    if result.invalid:
        remarks.append("[red]invalid[/]")
    return ", ".join(remarks)


def _knee_line(series: SeriesRecord) -> str:
    if series.saturating_rate is None:
        return f"Knee        above {series.kept_rate:.3g}/s: no rate tried saturates the endpoint"
    kept = f"{series.kept_rate:.3g}/s is kept, " if series.kept_rate else ""
    return f"Knee        {series.capacity:.3g}/s ({kept}{series.saturating_rate:.3g}/s is too much)"


def _best_line(series: SeriesRecord) -> str:
    slo = next((run.slo for run in series.runs if run.rate == series.best_rate), None)
    if slo is None:
        return "Objective   met at none of these rates"
    shown = {"pass": "shown", "fail": "refuted", "inconclusive": "not shown: more requests would tell"}
    return (
        f"Objective   met up to {series.best_rate:.3g}/s, goodput {slo.goodput.value:.3g}/s "
        f"(with 99 % confidence {shown[slo.verdict]})"
    )
