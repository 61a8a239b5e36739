"""The verdict in words: what a deployment engineer needs before any table."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.bench.records import Distribution, Estimate, Fidelity, TaskScore, Verdict
from qdeploy.bench.report import numbers
from qdeploy.bench.report.collect import Variant
from qdeploy.bench.report.compare import overall, percentile, ratio, significant
from qdeploy.bench.report.metrics import METRICS, Metric

HEADLINE_KEYS = (("ttft_sched", "ttft"), ("tpot",))
VERDICT_WORDS = {
    "pass": "accuracy holds",
    "fail": "accuracy is lost",
    "inconclusive": "accuracy is undecided",
    None: "accuracy was not compared",
}


@dataclass(frozen=True)
class Figure:
    """One headline figure: what, how much, and how sure."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Summary:
    """What the report says first about one quantized variant."""

    name: str
    verdict: Verdict | None
    verdict_words: str
    sentence: str
    kernel: str
    figures: list[Figure]


def summarize(variant: Variant, baseline: Variant | None) -> Summary:
    """The summary of a quantized variant against the baseline, or alone where there is none."""
    tasks = variant.eval.tasks if variant.eval else []
    verdict = overall(tasks)
    clauses = [size_words(variant, baseline)]
    clauses += [latency_words(m, variant, baseline) for m in headline_metrics(variant)]
    clauses += [accuracy_words(tasks), kl_words(variant)]
    return Summary(
        name=variant.name,
        verdict=verdict,
        verdict_words=VERDICT_WORDS[verdict],
        sentence="; ".join(clauses) + ".",
        kernel=kernel_words(variant),
        figures=_figures(variant, baseline),
    )


def headline_metrics(variant: Variant) -> list[Metric]:
    """Time to first token (as scheduled, where the loop was open) and time per output token."""
    by_key = {metric.key: metric for metric in METRICS}
    found = []
    for keys in HEADLINE_KEYS:
        present = [by_key[key] for key in keys if by_key[key].of(variant)]
        found += present[:1]
    return found


def size_words(variant: Variant, baseline: Variant | None) -> str:
    checkpoint = variant.checkpoint
    if checkpoint is None:
        return f"{variant.name}: size unknown (its weights are no longer there)"
    text = f"{checkpoint.describe()}: {numbers.size(checkpoint.weight_bytes)} of weights"
    factor = size_factor(variant, baseline)
    return text if factor is None else f"{text}, ×{factor:.2f} the size of the baseline"


def size_factor(variant: Variant, baseline: Variant | None) -> float | None:
    """Weight files against the baseline's, None where either is gone."""
    pair = (variant.checkpoint, baseline.checkpoint if baseline else None)
    if pair[0] is None or pair[1] is None or not pair[1].weight_bytes:
        return None
    return pair[0].weight_bytes / pair[1].weight_bytes


def latency_words(metric: Metric, variant: Variant, baseline: Variant | None) -> str:
    """How the median changed, or that the requests are too few to say."""
    ours, theirs = metric.of(variant), metric.of(baseline) if baseline else None
    median = percentile(ours, 50)
    if median is None or median.value is None:
        return f"median {metric.short}: {refusal(ours)}"
    alone = f"median {metric.short} {numbers.milliseconds(median.value)}"
    if theirs is None:
        return f"{alone} (baseline not measured)"
    change = ratio(median, percentile(theirs, 50))
    if change is None:
        return f"{alone}; too few requests to say how it differs from the baseline"
    return f"{alone}, {change_words(change)}"


def change_words(change: Estimate) -> str:
    """A latency ratio as a claim that the interval supports."""
    if not significant(change, 1.0):
        return f"no significant difference to the baseline ({numbers.times(change)})"
    return f"{numbers.times(change)} the baseline's"


def refusal(distribution: Distribution | None) -> str:
    median = percentile(distribution, 50)
    return numbers.MISSING if median is None else f"too few requests to say (needs {median.needed})"


def accuracy_words(tasks: list[TaskScore]) -> str:
    compared = [task for task in tasks if task.verdict]
    if not compared:
        return "accuracy not compared with the baseline"
    return "; ".join(task_words(task) for task in compared)


def task_words(task: TaskScore) -> str:
    """The verdict of one task with the numbers that carry it."""
    margin = "" if task.margin is None else f" the margin of {numbers.points(task.margin).lstrip('+')}"
    words = {
        "pass": f"within{margin}",
        "fail": f"beyond{margin}",
        "inconclusive": f"inconclusive against{margin}",
    }
    text = f"{task.title} accuracy {words[task.verdict or 'inconclusive']}"
    text += f": {numbers.estimate_points(task.difference)}, n = {task.items}"
    if task.verdict == "inconclusive" and task.items_needed:
        text += f", {task.items_needed} items needed to decide"
    return text


def kl_words(variant: Variant) -> str:
    fidelity = variant.eval.fidelity if variant.eval else None
    if fidelity is None or fidelity.kl_lower_bound is None:
        return "KL to the baseline not measured"
    return (
        f"KL to the baseline at least {numbers.estimate(fidelity.kl_lower_bound)} nats/token, "
        f"n = {fidelity.positions} tokens"
    )


def kernel_words(variant: Variant) -> str:
    """What the engine's log says it runs the quantized layers with."""
    engine = variant.engine
    if engine is None:
        return "No engine served it."
    served = f"Served by {engine.name} {engine.version or '(version unknown)'}"
    return (
        f"{served}; its log names the kernel {engine.kernel}."
        if engine.kernel
        else f"{served}; kernel unknown."
    )


def _figures(variant: Variant, baseline: Variant | None) -> list[Figure]:
    factor = size_factor(variant, baseline)
    figures = [] if factor is None else [Figure("Weights", f"×{factor:.2f}", "of the baseline's bytes")]
    figures += [_latency_figure(metric, variant, baseline) for metric in headline_metrics(variant)]
    tasks = [task for task in (variant.eval.tasks if variant.eval else []) if task.difference]
    figures += [_accuracy_figure(task) for task in tasks[:2]]
    fidelity = variant.eval.fidelity if variant.eval else None
    return figures + _fidelity_figures(fidelity)


def _latency_figure(metric: Metric, variant: Variant, baseline: Variant | None) -> Figure:
    ours = metric.of(variant)
    change = ratio(percentile(ours, 50), percentile(metric.of(baseline), 50)) if baseline else None
    label, count = f"Median {metric.short}", ours.count if ours else 0
    if change is None:
        return Figure(label, "too few to say" if baseline else "no baseline", f"n = {count} requests")
    sure = "" if significant(change, 1.0) else "not significant, "
    return Figure(label, f"×{numbers.number(change.value)}", f"{sure}{numbers.interval(change)}, n = {count}")


def _accuracy_figure(task: TaskScore) -> Figure:
    difference = task.difference or Estimate(value=0)
    sure = "" if significant(difference, 0.0) else "not significant, "
    note = f"{sure}{numbers.estimate_points(difference).partition('(')[2].rstrip(')')}, n = {task.items}"
    return Figure(f"Accuracy, {task.title}", numbers.points(difference.value), note)


def _fidelity_figures(fidelity: Fidelity | None) -> list[Figure]:
    if fidelity is None:
        return []
    shown = (("Perplexity", fidelity.perplexity_ratio, "×"), ("KL, at least", fidelity.kl_lower_bound, ""))
    return [
        Figure(
            label,
            f"{sign}{numbers.number(e.value)}",
            f"{numbers.interval(e)}, n = {fidelity.positions} tokens",
        )
        for label, e, sign in shown
        if e is not None
    ]
