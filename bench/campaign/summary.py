"""The campaign for a terminal: what to deploy, then the figures in one table."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from qdeploy.bench.records import Decision, Verdict
from qdeploy.bench.report import numbers
from qdeploy.bench.report.collect import Evidence, Variant
from qdeploy.bench.report.compare import overall, percentile
from qdeploy.bench.report.decision import figure_words, standing_words
from qdeploy.bench.report.words import headline_metrics, size_factor

COLOURS: dict[Verdict, str] = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def decision_summary(decision: Decision) -> RenderableType:
    """Which variant to deploy, what was asked, and every variant with the reason."""
    table = Table("variant", "", decision.optimize, "why", box=SIMPLE_HEAD, pad_edge=False)
    for standing in decision.standings:
        table.add_row(
            escape(standing.name),
            f"[{COLOURS[standing.verdict]}]{standing_words(decision, standing)}[/]",
            figure_words(standing, decision.optimize),
            escape("\n".join(standing.reasons)),
        )
    return Group(
        f"[bold {COLOURS[decision.verdict]}]{escape(decision.headline)}[/]",
        f"Asked: {escape(decision.objective)}.",
        table,
    )


def summary_rows(evidence: Evidence) -> list[dict[str, str]]:
    """One row for each variant, column title → text; the baseline first."""
    return [_row(variant, evidence.baseline) for variant in evidence.variants]


def summary_table(rows: list[dict[str, str]]) -> Table:
    """The rows for a terminal: one column a variant, for there are more figures than variants."""
    table = Table("", *(row["variant"] for row in rows))
    for key in dict.fromkeys(key for row in rows for key in row):
        if key != "variant":
            table.add_row(key, *(row.get(key, numbers.MISSING) for row in rows))
    return table


def _row(variant: Variant, baseline: Variant | None) -> dict[str, str]:
    load = variant.bench.load if variant.bench else None
    fidelity = variant.eval.fidelity if variant.eval else None
    tasks = [task for task in (variant.eval.tasks if variant.eval else []) if task.part_of is None]
    factor = size_factor(variant, baseline)
    row = {
        "variant": variant.name,
        "weights": numbers.size(variant.checkpoint.weight_bytes if variant.checkpoint else None),
        "size ratio": numbers.MISSING if factor is None else f"×{factor:.3f}",
        "kernel": (variant.engine.kernel if variant.engine else None) or "16-bit",
    }
    for metric in headline_metrics(variant):
        median = percentile(metric.of(variant), 0.5)
        row[f"median {metric.short}"] = numbers.milliseconds(median.value if median else None)
    row["output tokens/s"] = numbers.number(load.output_token_throughput) if load else numbers.MISSING
    row["perplexity"] = numbers.estimate(fidelity.perplexity if fidelity else None)
    row["KL, at least"] = numbers.estimate(fidelity.kl_lower_bound if fidelity else None)
    for task in tasks:
        row[f"{task.title}, n = {task.items}"] = numbers.estimate_percent(task.accuracy)
    verdict = overall(tasks, variant.eval.suite if variant.eval else None)
    row["verdict"] = "baseline" if variant.is_baseline else verdict or "not compared"
    return row
