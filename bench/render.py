"""An evaluation as tables for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from qdeploy.bench.compare.tables import floor_words
from qdeploy.bench.records import Estimate, Fidelity, RunRecord, TaskFigure, TaskScore, TokenStatistics
from qdeploy.bench.statistics import detectable_difference

PLANNED_CHURN = (0.05, 0.10)
"""Shares of items that 4-bit quantization commonly flips; for planning, before any are known."""


def render_eval(record: RunRecord) -> RenderableType:
    """Fidelity, accuracy, and what the number of items can show."""
    parts: list[RenderableType] = []
    if record.fidelity is not None:
        parts.append(_fidelity(record.fidelity))
    if record.tasks:
        parts.append(_tasks([*record.tasks, *([record.suite] if record.suite else [])]))
        parts += [_power(score) for score in record.tasks if score.part_of is None]
    if record.figures:
        parts.append(_figures(record.figures))
    parts += [escape(words) for words in floor_words(record.noise)]
    parts += [f"Not the whole of {task}: {what}." for task, what in record.incomplete.items()]
    parts += [f"Not asked: {task}. {reason}" for task, reason in record.skipped.items()]
    return Group(*parts)


def _fidelity(fidelity: Fidelity) -> Table:
    size = f"{fidelity.windows} windows of {fidelity.window_tokens} tokens"
    table = Table(title=f"Fidelity, {fidelity.protocol}: {size}, {fidelity.text}")
    table.add_column("figure")
    table.add_column("value [95 % interval]", justify="right")
    for name, estimate, form in _own_figures(fidelity):
        table.add_row(name, _estimate(estimate, form))
    if fidelity.tokens is None:
        return table
    for name, value in _agreement(fidelity, fidelity.tokens):
        table.add_row(name, value)
    return table


def _own_figures(fidelity: Fidelity) -> list[tuple[str, Estimate | None, str]]:
    """What needs no baseline."""
    figures = [
        ("perplexity", fidelity.perplexity, "{:.3f}"),
        ("word perplexity", fidelity.word_perplexity, "{:.3f}"),
        ("byte perplexity", fidelity.byte_perplexity, "{:.4f}"),
        ("bits per byte", fidelity.bits_per_byte, "{:.4f}"),
    ]
    return [figure for figure in figures if figure[1] is not None]


def _agreement(fidelity: Fidelity, tokens: TokenStatistics) -> list[tuple[str, str]]:
    """llama.cpp's table, name → value."""
    design = tokens.design_effect
    correlation = tokens.ln_perplexity_correlation
    rows = [
        ("baseline's perplexity", _estimate(fidelity.baseline_perplexity, "{:.3f}")),
        ("correlation of ln perplexities", "" if correlation is None else f"{correlation:.4f}"),
        ("ln perplexity ratio", _estimate(tokens.ln_perplexity_ratio, "{:+.5f}")),
        ("  its variance by window / by token", "" if design is None else f"{design:.2f}"),
        ("perplexity ratio", _estimate(fidelity.perplexity_ratio, "{:.4f}")),
        ("perplexity difference", _estimate(tokens.perplexity_difference, "{:+.3f}")),
        (f"KL divergence, lower bound, {_method(fidelity)}", _estimate(fidelity.kl_lower_bound, "{:.4f}")),
        *((f"  {name}", f"{value:.5f}") for name, value in tokens.kl_percentiles.items()),
        ("probability mass outside the bound", f"{fidelity.tail_mass or 0:.1%}"),
    ]
    if (check := fidelity.monte_carlo) is not None:
        rows += [
            (f"KL divergence where the baseline writes, {check.positions} tokens", ""),
            ("  mean ln p − ln q", _estimate(check.log_ratio, "{:.4f}")),
            ("  k3", _estimate(check.k3, "{:.4f}")),
            (f"  lower bound, {check.method}", _estimate(check.kl_lower_bound, "{:.4f}")),
        ]
    return [
        *rows,
        ("Δp of the text's tokens, mean", _estimate(tokens.dp_mean, "{:+.3%}")),
        ("  root mean square", _estimate(tokens.dp_rms, "{:.3%}")),
        *((f"  {name}", f"{value:+.3%}") for name, value in tokens.dp_percentiles.items()),
        ("same most likely token", _estimate(fidelity.same_top_token, "{:.1%}")),
    ]


def _method(fidelity: Fidelity) -> str:
    return f"{fidelity.method} (nats, top {fidelity.top_k})"


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
