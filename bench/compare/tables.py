"""A comparison as plain tables, which the terminal and a pull request show alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdeploy.bench.compare.comparison import Candidate, Comparison
from qdeploy.bench.noise import beyond_floor, doubt, is_divergence
from qdeploy.bench.records import Noise, TaskScore, Verdict
from qdeploy.bench.report import numbers
from qdeploy.bench.report.metrics import METRICS
from qdeploy.bench.statistics import MARGINS, holm, judge

SHOWN_QUANTILES = (0.5, 0.99)


@dataclass(frozen=True)
class Table:
    """A title, the heads of the columns, and text cells by row, of one or more lines."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(comparison: Comparison, candidate: Candidate) -> list[Table]:
    """What was compared of one candidate: accuracy, fidelity, latency."""
    found = []
    if candidate.tasks:
        found.append(_accuracy(candidate, comparison.margin))
    if candidate.fidelity:
        found.append(_fidelity(candidate, comparison.noise))
    if candidate.latencies:
        found.append(_latency(candidate))
    return found


def floor_words(noise: Noise | None) -> list[str]:
    """The noise floor in a line a task."""
    lines = [
        f"Noise floor, {score.title} ({score.metric}): the baseline against itself differs by "
        f"{numbers.points(score.difference.value)} and flips {numbers.estimate_percent(score.flips)}."
        for score in (noise.tasks if noise else [])
        if score.difference and score.part_of is None
    ]
    if noise and noise.fidelity and noise.fidelity.kl_lower_bound:
        lines.append(f"Noise floor, KL: {numbers.estimate(noise.fidelity.kl_lower_bound)} nats a token.")
    return lines


def _accuracy(candidate: Candidate, margin: float) -> Table:
    scores = [*candidate.whole_tasks, *([candidate.suite] if candidate.suite else [])]
    margins = sorted({margin, *MARGINS}, reverse=True)
    return Table(
        f"Accuracy, {candidate.name}: 95 % intervals; of recovery, 5 % on each side; p after Holm",
        ("task", "items", "baseline", "difference", "recovery", "flips", "keeps"),
        [_row(score, p, margins) for score, p in zip(scores, _adjusted(scores), strict=True)],
    )


def _adjusted(scores: Sequence[TaskScore]) -> list[float | None]:
    """Two-sided p of each difference after Holm over the tasks; None of the suite."""
    known = [score.difference_p for score in scores if score.difference_p is not None]
    adjusted = iter(holm(known))
    return [None if score.difference_p is None else next(adjusted) for score in scores]


def _row(score: TaskScore, p: float | None, margins: Sequence[float]) -> tuple[str, ...]:
    difference, recovery, flips = score.difference, score.recovery_bounds, score.flips
    assert difference and flips
    return (
        f"{score.title}\n{score.metric}",
        f"{score.items:,}",
        numbers.percent(score.baseline_accuracy.value if score.baseline_accuracy else None),
        f"{numbers.points(difference.value)}\n{numbers.interval_points(difference)}"
        + ("" if p is None else f"\n{numbers.p_value(p)}{doubt(score)}"),
        f"{numbers.percent(recovery.value)}\n{numbers.interval_percent(recovery)}" if recovery else "none",
        f"{numbers.percent(flips.value)}\n{numbers.interval_percent(flips)}",
        "\n".join(f"{1 - margin:.4g}: {_verdict(score, margin)}" for margin in margins),
    )


def _verdict(score: TaskScore, margin: float) -> Verdict:
    found = judge(score.recovery_bounds, margin)
    return "inconclusive" if found == "fail" and not beyond_floor(score) else found


def _fidelity(candidate: Candidate, noise: Noise | None) -> Table:
    found = candidate.fidelity
    assert found is not None
    kl = numbers.estimate(found.kl_lower_bound)
    within = "" if is_divergence(found, noise) else ", within noise"
    return Table(
        f"Fidelity, {candidate.name}: {found.text}",
        ("figure", "value [95 %]"),
        [
            ("perplexity", numbers.estimate(found.perplexity)),
            ("perplexity / baseline's", numbers.estimate(found.perplexity_ratio)),
            (f"KL at least (nats, {found.method})", f"{kl}{within}"),
            ("same most likely token", numbers.estimate_percent(found.same_top_token)),
        ],
    )


def _latency(candidate: Candidate) -> Table:
    names = {metric.key: metric.short for metric in METRICS}
    rows: list[tuple[str, ...]] = [
        (
            f"{names[change.metric]}, p{change.q * 100:g}",
            numbers.milliseconds(change.baseline),
            numbers.milliseconds(change.value)
            if change.value is not None
            else f"needs {change.needed} requests",
            "not known" if change.ratio is None else numbers.times(change.ratio),
            change.unit,
        )
        for change in candidate.latencies
        if change.metric in names and any(abs(change.q - q) < 1e-9 for q in SHOWN_QUANTILES)
    ]
    return Table(
        f"Latency, {candidate.name}",
        ("figure", "baseline", "candidate", "ratio [95 %]", "interval over"),
        rows,
    )
