"""The verdict in words: what a deployment engineer needs before any table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdeploy.bench.noise import beyond_floor, is_difference, is_divergence
from qdeploy.bench.records import Distribution, Estimate, Fidelity, LoadResult, TaskScore, Verdict
from qdeploy.bench.report import numbers
from qdeploy.bench.report.collect import Variant
from qdeploy.bench.report.compare import overall, percentile, ratio, significant
from qdeploy.bench.report.metrics import METRICS, Metric

HEADLINE_KEYS = (("ttft_sched_ms", "ttft_ms"), ("tpot_ms",))
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
    lead: str
    details: list[str]
    figures: list[Figure]


def summarize(variant: Variant, baseline: Variant | None) -> Summary:
    """The summary of a quantized variant against the baseline, or alone where there is none."""
    tasks = compared_tasks(variant)
    verdict = overall(tasks, variant.eval.suite if variant.eval else None)
    latencies = [latency_words(metric, variant, baseline) for metric in headline_metrics(variant)]
    return Summary(
        name=variant.name,
        verdict=verdict,
        verdict_words=VERDICT_WORDS[verdict],
        lead=f"{size_words(variant, baseline)} {accuracy_words(tasks)}",
        details=[
            *client_words(variant, baseline),
            *latencies,
            kl_words(variant, baseline),
            kernel_words(variant),
            *verify_words(variant),
        ],
        figures=_figures(variant, baseline),
    )


def compared_tasks(variant: Variant) -> list[TaskScore]:
    """Whole tasks that were paired with the baseline's answers; their parts carry no verdict."""
    tasks = variant.eval.tasks if variant.eval else []
    return [task for task in tasks if task.difference and task.part_of is None]


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
        return "Its checkpoint folder is not there, so its size is unknown."
    text = f"{checkpoint.describe()}: {numbers.size(checkpoint.weight_bytes)} of weights"
    factor = size_factor(variant, baseline)
    if factor is None or baseline is None or baseline.checkpoint is None:
        return f"{text}."
    return f"{text}, ×{factor:.2f} the baseline's {numbers.size(baseline.checkpoint.weight_bytes)}."


def size_factor(variant: Variant, baseline: Variant | None) -> float | None:
    """Weight files against the baseline's, None where either is gone."""
    pair = (variant.checkpoint, baseline.checkpoint if baseline else None)
    if pair[0] is None or pair[1] is None or not pair[1].weight_bytes:
        return None
    return pair[0].weight_bytes / pair[1].weight_bytes


def latency_words(metric: Metric, variant: Variant, baseline: Variant | None) -> str:
    """How the median changed, or why that cannot be said."""
    ours = metric.of(variant)
    median = percentile(ours, 0.5)
    if ours is None or median is None or median.value is None:
        return f"Median {metric.short}: {refusal(ours)}."
    change = change_words(median_change(metric, variant, baseline))
    counted = f"({numbers.samples(ours.count, 'requests')}, one run)"
    return f"Median {metric.short} {numbers.milliseconds(median.value)}, {change} {counted}."


def median_change(metric: Metric, variant: Variant, baseline: Variant | None) -> Estimate | str:
    """The variant's median over the baseline's, or why there is no such figure."""
    theirs = metric.of(baseline) if baseline else None
    if baseline is None or theirs is None:
        return "not compared: the baseline was not measured"
    if not same_load(variant, baseline):
        return "not compared: the baseline had another load"
    pair = percentile(metric.of(variant), 0.5), percentile(theirs, 0.5)
    if any(median and median.value is not None and median.low is None for median in pair):
        return "not compared: its samples depend on each other, so there is no interval"
    return ratio(*pair) or "too few requests to say how it differs from the baseline"


def same_load(variant: Variant, baseline: Variant) -> bool:
    """Whether both were sent the same load, which is what makes their latencies comparable."""
    loads = [v.bench.load for v in (variant, baseline) if v.bench and v.bench.load]
    sent = [
        (
            (load.arrival, load.rate, load.concurrency, load.source),
            (load.prompt_tokens_asked, load.output_tokens_asked),
        )
        for load in loads
    ]
    return len(sent) == 2 and sent[0] == sent[1]


def client_words(variant: Variant, baseline: Variant | None) -> list[str]:
    """A warning for each load run whose figures say little of the server."""
    loads = [(v.name, v.bench.load) for v in (variant, baseline) if v and v.bench and v.bench.load]
    return [_load_warning(name, load) for name, load in loads if load.doubt]


def _load_warning(name: str, load: LoadResult) -> str:
    if load.client_limited:
        return (
            f"The load client fell behind its schedule while {name} was measured: distrust these latencies."
        )
    return f"The load run of {name} is {load.doubt}."


def change_words(change: Estimate | str) -> str:
    """A latency ratio as a claim that the interval supports."""
    if isinstance(change, str):
        return change
    if not significant(change, 1.0):
        return f"not significantly different from the baseline's ({numbers.times(change)})"
    return f"{numbers.times(change)} the baseline's"


def refusal(distribution: Distribution | None) -> str:
    median = percentile(distribution, 0.5)
    return numbers.MISSING if median is None else f"too few requests to say (needs {median.needed})"


def accuracy_words(tasks: Sequence[TaskScore]) -> str:
    if not tasks:
        return "Accuracy was not compared with the baseline."
    return " ".join(task_words(task) for task in tasks)


def task_words(task: TaskScore) -> str:
    """The verdict of one task with the numbers that carry it."""
    figures = f"{numbers.estimate_points(task.difference)}, {numbers.samples(task.items, 'items')}"
    if task.margin is None or task.verdict is None:
        return f"{task.title}: {figures}."
    kept = f"{numbers.percent(1 - task.margin)} of the baseline's accuracy"
    claims = {
        "pass": f"keeps at least {kept}",
        "fail": f"keeps less than {kept}",
        "inconclusive": f"whether it keeps {kept} is undecided",
    }
    doubt = "" if beyond_floor(task) else ", no more than the baseline differs from itself"
    text = f"{task.title}: {claims[task.verdict]} ({figures}{doubt})"
    if task.items_needed:
        text += f"; about {task.items_needed:,} items would decide"
    return f"{text}."


def kl_words(variant: Variant, baseline: Variant | None) -> str:
    fidelity = variant.eval.fidelity if variant.eval else None
    if fidelity is None or fidelity.kl_lower_bound is None:
        return "KL to the baseline was not measured."
    noise = baseline.eval.noise if baseline and baseline.eval else None
    doubt = "" if is_divergence(fidelity, noise) else ", which is not beyond the baseline's to itself"
    return (
        f"KL to the baseline is at least {numbers.estimate(fidelity.kl_lower_bound)} nats a token "
        f"({numbers.samples(fidelity.positions, 'tokens')}){doubt}."
    )


def kernel_words(variant: Variant) -> str:
    """What the engine's log says it runs the quantized layers with."""
    engine = variant.engine
    if engine is None:
        return "No engine served it."
    served = f"Served by {engine.name} {engine.version or '(version unknown)'}"
    return f"{served} with {engine.kernel}, says its log." if engine.kernel else f"{served}, kernel unknown."


def verify_words(variant: Variant) -> list[str]:
    """The outcome of the verification in one sentence; none if it was not verified."""
    found = variant.verify.verify if variant.verify else None
    if not found:
        return []
    outcome = {
        "pass": "computes what the checkpoint says",
        "fail": "does not compute what the checkpoint says",
    }
    words = outcome.get(found.get("verdict", ""), "was verified")
    return [f"The served model {words} ({numbers.samples(found.get('positions', 0), 'tokens')})."]


def _figures(variant: Variant, baseline: Variant | None) -> list[Figure]:
    factor = size_factor(variant, baseline)
    figures = [] if factor is None else [Figure("Weights", f"×{factor:.2f}", "of the baseline's bytes")]
    figures += [_latency_figure(metric, variant, baseline) for metric in headline_metrics(variant)]
    figures += [_accuracy_figure(task) for task in compared_tasks(variant)[:2]]
    fidelity = variant.eval.fidelity if variant.eval else None
    return figures + _fidelity_figures(fidelity)


def _latency_figure(metric: Metric, variant: Variant, baseline: Variant | None) -> Figure:
    ours, change = metric.of(variant), median_change(metric, variant, baseline)
    label, counted = f"Median {metric.short}", numbers.samples(ours.count if ours else 0, "requests")
    if isinstance(change, str):
        return Figure(label, "no ratio", f"{change}, {counted}")
    return Figure(label, f"×{numbers.number(change.value)}", f"{_sure(change, 1.0)}, {counted}")


def _accuracy_figure(task: TaskScore) -> Figure:
    difference = task.difference or Estimate(value=0)
    bounds = numbers.interval_points(difference) + ("" if is_difference(task) else " not significant")
    note = f"{bounds}, {numbers.samples(task.items, 'items')}"
    return Figure(f"Accuracy, {task.title}", numbers.points(difference.value), note)


def _sure(estimate: Estimate, null: float) -> str:
    bounds = numbers.interval(estimate)
    return bounds if significant(estimate, null) else f"{bounds} not significant"


def _fidelity_figures(fidelity: Fidelity | None) -> list[Figure]:
    if fidelity is None:
        return []
    shown = (("Perplexity", fidelity.perplexity_ratio, "×"), ("KL, at least", fidelity.kl_lower_bound, ""))
    counted = numbers.samples(fidelity.positions, "tokens")
    return [
        Figure(label, f"{sign}{numbers.number(e.value)}", f"{numbers.interval(e)}, {counted}")
        for label, e, sign in shown
        if e is not None
    ]
