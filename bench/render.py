"""An evaluation as tables for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from qdeploy.bench.records import Estimate, Fidelity, RunRecord, TaskFigure, TaskScore
from qdeploy.bench.statistics import detectable_difference

PLANNED_CHURN = (0.05, 0.10)
"""Shares of items that 4-bit quantization commonly flips; for planning, before any are known."""


def render_eval(record: RunRecord) -> RenderableType:
    """Fidelity, accuracy, and what the number of items can show."""
    parts: list[RenderableType] = []
    if record.fidelity is not None:
        parts.append(_fidelity(record.fidelity))
    if record.tasks:
        parts.append(_tasks(record.tasks))
        parts += [_power(score) for score in record.tasks if score.part_of is None]
    if record.figures:
        parts.append(_figures(record.figures))
    parts += [f"Not the whole of {task}: {what}." for task, what in record.incomplete.items()]
    parts += [f"Not asked: {task}. {reason}" for task, reason in record.skipped.items()]
    return Group(*parts)


def _fidelity(fidelity: Fidelity) -> Table:
    table = Table(
        title=f"Fidelity: {fidelity.windows} windows of {fidelity.window_tokens} tokens, {fidelity.text}"
    )
    table.add_column("figure")
    table.add_column("value [95 % interval]", justify="right")
    table.add_row("perplexity", _estimate(fidelity.perplexity, "{:.3f}"))
    if fidelity.method == "none":
        return table
    table.add_row("baseline's perplexity", _estimate(fidelity.baseline_perplexity, "{:.3f}"))
    table.add_row("perplexity ratio", _estimate(fidelity.perplexity_ratio, "{:.4f}"))
    table.add_row(
        f"KL divergence, lower bound (nats, top {fidelity.top_k})",
        _estimate(fidelity.kl_lower_bound, "{:.4f}"),
    )
    table.add_row("probability mass outside the bound", f"{fidelity.tail_mass:.1%}")
    table.add_row("same most likely token", _estimate(fidelity.same_top_token, "{:.1%}"))
    return table


def _tasks(scores: list[TaskScore]) -> Table:
    table = Table(title="Accuracy")
    paired = any(score.difference is not None for score in scores)
    for title in ("task", "items", "metric", "accuracy [95 % interval]"):
        table.add_column(title, justify="left" if title == "task" else "right")
    for title in ("difference", "flips", "p (McNemar)", "verdict") if paired else ():
        table.add_column(title, justify="right")
    for score in scores:
        name = f"  {score.title}" if score.part_of else score.title
        cells = [name, str(score.items), score.metric, _estimate(score.accuracy, "{:.1%}")]
        table.add_row(*cells, *(_comparison(score) if paired else ()))
    return table


def _comparison(score: TaskScore) -> tuple[str, ...]:
    return (
        _estimate(score.difference, "{:+.1%}"),
        "" if score.flips is None else f"{score.flips.value:.1%}",
        "" if score.mcnemar_p is None else f"{score.mcnemar_p:.3f}",
        score.verdict or "",
    )


def _figures(figures: list[TaskFigure]) -> Table:
    table = Table(title="Figures that are no shares")
    paired = any(figure.difference is not None for figure in figures)
    for title in ("task", "items", "metric", "value [95 % interval]", *(("difference",) if paired else ())):
        table.add_column(title, justify="left" if title == "task" else "right")
    for figure in figures:
        metric = f"{figure.metric} {'↓' if figure.lower_is_better else '↑'}"
        cells = [figure.title, str(figure.items), metric, _estimate(figure.value, "{:.4g}")]
        table.add_row(*cells, *((_estimate(figure.difference, "{:+.4g}"),) if paired else ()))
    return table


def _power(score: TaskScore) -> str:
    """What this many items can and cannot tell."""
    churns = PLANNED_CHURN if score.flips is None else (score.flips.value,)
    found = " or ".join(_detectable(churn, score.items) for churn in churns)
    text = f"{score.task} ({score.metric}): with 80 % power, {score.items} items show {found}."
    if score.items_needed is not None:
        text += f" A verdict at margin {score.margin:.1%} needs about {score.items_needed} items."
    return text


def _detectable(churn: float, items: int) -> str:
    difference = detectable_difference(churn, items)
    shown = "no difference" if difference is None else f"a difference of {difference:.1%}"
    return f"{shown} where {churn:.1%} of the answers flip"


def _estimate(estimate: Estimate | None, form: str) -> str:
    if estimate is None:
        return ""
    value = form.format(estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{form.format(estimate.low)}, {form.format(estimate.high)}]"
