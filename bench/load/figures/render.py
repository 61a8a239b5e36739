"""The figures of a load run as a table for the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from qdeploy.bench.load.figures.findings import more_lines
from qdeploy.bench.records import ClientUse, LoadResult, Percentile

CAPTION = "Milliseconds with 95 % intervals; scheduled: from the time a request was due."
TITLES = {
    "ttft_ms": "TTFT",
    "ttft_sched_ms": "  scheduled",
    "tpot_ms": "TPOT",
    "itl_ms": "ITL",
    "icl_ms": "ICL",
    "e2e_ms": "E2E",
    "e2e_sched_ms": "  scheduled",
    "ntpot_ms": "E2E / tokens",
}


def render(result: LoadResult) -> RenderableType:
    """Latencies in a table, the rest in lines below it."""
    table = Table(title=_title(result), box=SIMPLE_HEAD, title_justify="left", caption=CAPTION)
    table.add_column("")
    for column in ("n", "mean", *(f"p{p.q * 100:g}" for p in result.metrics["e2e_ms"].percentiles)):
        table.add_column(column, justify="right")
    for key in (k for k in TITLES if k in result.metrics):
        found = result.metrics[key]
        mean = "–" if found.mean is None else f"{found.mean:.1f}"
        table.add_row(TITLES[key], str(found.count), mean, *map(_cell, found.percentiles))
    return Group(table, *_lines(result))


def _title(result: LoadResult) -> str:
    if result.concurrency:
        return f"Closed loop, {result.concurrency} concurrent"
    return f"Open loop, {result.arrival} arrivals at {result.rate:.4g}/s"


def _cell(p: Percentile) -> str:
    if p.value is None:
        return f"[dim]n ≥ {p.needed}[/]"
    if p.low is None and p.high is None:
        return f"{p.value:.1f}"
    low, high = ("–" if bound is None else f"{bound:.0f}" for bound in (p.low, p.high))
    return f"{p.value:.1f}\n[dim]\\[{low}, {high}][/]"


def _lines(result: LoadResult) -> list[str]:
    lines = [
        f"Requests    {result.completed} completed, {result.failed} failed, "
        f"{result.request_throughput:.2f}/s over {result.duration_s:.1f} s, "
        f"at most {result.peak_in_flight} in flight",
        f"Tokens      {result.input_tokens / max(result.completed, 1):.1f} in and "
        f"{result.output_tokens / max(result.completed, 1):.1f} out per request, "
        f"{result.output_token_throughput:.1f} out/s"
        + (f", {result.tokens_per_chunk:.2f} per chunk" if result.tokens_per_chunk else ""),
    ]
    if result.client:
        lines.append("Client      " + _client(result, result.client))
    lines += more_lines(result)
    lines += [f"[red]Failed      {count} × {kind}[/]" for kind, count in result.errors.items()]
    lines += [f"[red]Invalid     {escape(reason)}.[/]" for reason in result.invalid]
    return lines


def _client(result: LoadResult, client: ClientUse) -> str:
    """How well the load was put on, and how far the client was from what it can do."""
    parts = []
    if result.schedule_lag_p99_ms is not None:
        parts.append(
            f"sent {result.achieved_rate:.2f}/s of {result.rate or 0:.2f}/s, "
            f"{result.schedule_lag_p50_ms:.1f} ms late at p50, {result.schedule_lag_p99_ms:.1f} at p99"
        )
    processes = "1 process" if client.processes == 1 else f"{client.processes} processes"
    parts.append(f"{processes} at {client.share:.1%} of {client.ceiling_events_per_s:,.0f} events/s")
    if client.in_flight is not None and client.engine_in_flight is not None:
        parts.append(f"{client.in_flight:.1f} in flight when the engine said {client.engine_in_flight:.1f}")
    return "; ".join(parts)
