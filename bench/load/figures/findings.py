"""What else a load run found, a line each for the terminal."""

from __future__ import annotations

from qdeploy.bench.records import Estimate, Level, LoadResult, SloResult, Telemetry

GIB = 1 << 30


def more_lines(result: LoadResult) -> list[str]:
    """Lines for whatever the run has: steady window, objective, engine, GPUs, cost, lengths."""
    lines = []
    if result.interrupted:
        lines.append(f"[yellow]Interrupted: figures of the {result.requests} requests that had ended.[/]")
    if steady := result.steady:
        lines.append(
            f"Steady      {steady.request_throughput:.2f}/s, {steady.output_token_throughput:.1f} out/s "
            f"from {steady.start_s:.1f} to {steady.end_s:.1f} s"
        )
    if result.slo:
        lines += _objective(result.slo)
    if result.telemetry:
        lines += _telemetry(result.telemetry)
    if cost := result.cost:
        lines.append(
            f"Cost        {cost.per_million_output_tokens:.4g} per million output tokens, "
            f"{cost.per_million_tokens:.4g} per million in and out, at {cost.price_per_hour:g} an hour"
        )
    if ratio := result.output_length_ratio:
        lines.append(f"Lengths     {ratio.value:.3f} {_interval(ratio, '.3f')} of the baseline's answers")
    return lines


def _objective(slo: SloResult) -> list[str]:
    words = {"pass": "kept", "fail": "broken", "inconclusive": "undecided"}
    share, goodput = slo.good_share, slo.goodput
    return [
        f"Objective   {'met' if slo.met else 'not met'} as observed; with 99 % confidence "
        + ", ".join(f"{r.limit} {words[r.verdict]} ({r.over} of {r.requests} over)" for r in slo.limits),
        f"Goodput     {goodput.value:.2f}/s {_interval(goodput, '.2f')}, {share.value:.1%} of the requests",
    ]


def _telemetry(found: Telemetry) -> list[str]:
    lines = []
    gauges = (("running", found.running), ("waiting", found.waiting))
    known = [f"{name} {_level(level, '.1f')}" for name, level in gauges if level]
    if found.kv_usage:
        known.append(f"KV cache {_level(found.kv_usage, '.0%')}")
    if found.preemptions is not None:
        known.append(f"{found.preemptions} preemptions")
    if found.prefix_queries:
        known.append(f"{(found.prefix_hits or 0) / found.prefix_queries:.1%} of prompt tokens from the cache")
    if known:
        lines.append("Engine      " + ", ".join(known))
    for gpu in found.gpus:
        lines.append(
            f"GPU         {gpu.name}: {gpu.mean_power_w:.0f} W, {gpu.peak_memory_bytes / GIB:.1f} GiB at most"
        )
    if found.output_tokens_per_joule:
        lines.append(f"Energy      {found.output_tokens_per_joule:.3g} output tokens per joule")
    return lines


def _level(level: Level, form: str) -> str:
    return f"{level.mean:{form}} (at most {level.peak:{form}})"


def _interval(estimate: Estimate, form: str) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[dim]\\[{estimate.low:{form}}, {estimate.high:{form}}][/]"
