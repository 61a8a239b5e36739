"""What serving a variant takes against what it keeps, and the variants that no other one beats."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.bench.records import Estimate, LoadResult, SeriesRecord, TaskScore
from qdeploy.bench.report import fidelity, numbers
from qdeploy.bench.report.collect import Evidence, Variant
from qdeploy.bench.report.compare import percentile
from qdeploy.bench.report.metrics import Metric
from qdeploy.bench.report.words import compared_tasks, headline_metrics, same_load

NOTHING = Estimate(value=0.0)
"""What the baseline differs from itself by."""


@dataclass(frozen=True)
class Quantity:
    """A figure that variants are compared by, in `unit`.

    `values` are those of the variants that have it, by their place among all. `note` says where they are
    from, or why there are fewer than the two that a comparison takes.
    """

    key: str
    label: str
    unit: str
    more_is_better: bool
    values: dict[int, Estimate]
    note: str

    @property
    def known(self) -> bool:
        return len(self.values) > 1

    def better(self, one: int, other: int) -> bool:
        """Whether the one variant's value is better than the other's, as estimated."""
        a, b = self.values[one].value, self.values[other].value
        return a > b if self.more_is_better else a < b

    def words(self, index: int) -> str:
        """The figure of a variant, e.g. "TPOT, median 8.40 [7.81, 9.07] ms"."""
        found = self.values[index]
        bounds = "" if found.low is None or found.high is None else f" {numbers.interval(found)}"
        return f"{self.label} {numbers.number(found.value)}{bounds} {self.unit}"


def kept(evidence: Evidence) -> list[Quantity]:
    """What of the baseline is kept: accuracy, and agreement token by token."""
    return [_accuracy(evidence), _divergence(evidence)]


def costs(evidence: Evidence) -> list[Quantity]:
    """What serving takes: throughput, the rate within an objective where there is one, latencies, size."""
    series = {i: variant.series for i, variant in enumerate(evidence.variants) if variant.series}
    metrics = {metric.key: metric for variant in evidence.variants for metric in headline_metrics(variant)}
    return [
        _capacity(series, evidence) if len(series) > 1 else _closed_loop(evidence),
        *([_within_objective(series)] if any(run.slo for s in series.values() for run in s.runs) else []),
        *(_latency(metric, evidence) for metric in metrics.values()),
        _size(evidence),
    ]


def shared(x: Quantity, y: Quantity) -> list[int]:
    """The variants that have both figures, by place."""
    return [i for i in x.values if i in y.values]


def beaten_by(index: int, x: Quantity, y: Quantity) -> list[int]:
    """The variants that are better than one in a figure and no worse in the other, as estimated."""
    return [
        i
        for i in shared(x, y)
        if not (x.better(index, i) or y.better(index, i)) and (x.better(i, index) or y.better(i, index))
    ]


def front(x: Quantity, y: Quantity) -> list[int]:
    """The Pareto front: the variants that no other one beats, in the order of `x`."""
    unbeaten = [i for i in shared(x, y) if not beaten_by(i, x, y)]
    return sorted(unbeaten, key=lambda i: (x.values[i].value, y.values[i].value))


def _accuracy(evidence: Evidence) -> Quantity:
    """The difference to the baseline: paired, it is surer than two accuracies."""
    scores = {i: _whole_score(variant) for i, variant in enumerate(evidence.variants)}
    asked = {(score.task, score.metric, score.source): score.title for score in scores.values() if score}
    values = {
        i: score.difference.mapped(_percent) for i, score in scores.items() if score and score.difference
    }
    note = "No task was compared with the baseline, or several without a mean of their own."
    if len(asked) > 1:
        values, note = {}, "The variants were not asked the same tasks."
    elif asked:
        note = f"{next(iter(asked.values()))}, paired item by item with the baseline, which is at 0."
    return Quantity("accuracy", "accuracy", "pp", True, _with_baseline(values, evidence), note)


def _whole_score(variant: Variant) -> TaskScore | None:
    """The score over all tasks, None where there are several and nothing sums them up."""
    tasks = compared_tasks(variant)
    if variant.eval and variant.eval.suite:
        return variant.eval.suite
    return tasks[0] if len(tasks) == 1 else None


def _divergence(evidence: Evidence) -> Quantity:
    found = fidelity.measured(evidence.variants)
    compared = [f for f in found if f.method != "none"]
    values = {
        i: bound
        for i, variant in enumerate(evidence.variants)
        if variant.eval and variant.eval.fidelity and (bound := fidelity.bound(variant.eval.fidelity, found))
    }
    note = (
        "Lower bound of the divergence from the baseline, which is at 0." if values else "None was measured."
    )
    if len({(f.top_k, f.text_sha256, f.protocol) for f in compared}) > 1:
        values, note = {}, "KL was bounded on different texts, or with different K."
    return Quantity("kl", "KL, at least", "nats/token", False, _with_baseline(values, evidence), note)


def _with_baseline(values: dict[int, Estimate], evidence: Evidence) -> dict[int, Estimate]:
    own = {i: NOTHING for i, variant in enumerate(evidence.variants) if variant.is_baseline and values}
    return own | values


def _capacity(series: dict[int, SeriesRecord], evidence: Evidence) -> Quantity:
    """The knee, of the engines that a rate saturated: of the others only a bound is known."""
    values = {
        i: Estimate(value=s.capacity, low=min(s.kept_rate or s.capacity, s.capacity), high=s.saturating_rate)
        for i, s in series.items()
        if s.saturating_rate is not None
    }
    note = "Knee of the sweep; the bar is from the rate that was kept to the one that saturated the engine."
    if open_ended := [evidence.variants[i].name for i in series if i not in values]:
        note += f" No rate tried saturates {', '.join(open_ended)}."
    return Quantity("throughput", "throughput", "requests/s", True, values, note)


def _within_objective(series: dict[int, SeriesRecord]) -> Quantity:
    values = {
        i: Estimate(value=s.best_rate, low=s.best_rate, high=_next_rate(s, s.best_rate))
        for i, s in series.items()
        if s.best_rate is not None
    }
    note = "Highest rate tried that met the objective; the bar goes to the next one tried, which did not."
    return Quantity("objective", "rate within objective", "requests/s", True, values, note)


def _next_rate(series: SeriesRecord, rate: float) -> float | None:
    return min((run.rate for run in series.runs if run.rate and run.rate > rate), default=None)


def _closed_loop(evidence: Evidence) -> Quantity:
    """Tokens of closed loops; an open loop only gets what it offered."""
    values = {
        i: Estimate(value=load.output_token_throughput)
        for i, load in _comparable_loads(evidence).items()
        if load.arrival == "closed"
    }
    note = "Output tokens of the closed loop; one run, no interval."
    if len(values) < 2:
        note = "An open loop gets what it offers: qdeploy bench --sweep measures what the engine can do."
    return Quantity("throughput", "throughput", "tokens/s", True, values, note)


def _latency(metric: Metric, evidence: Evidence) -> Quantity:
    values = {
        i: Estimate(value=p.value, low=p.low, high=p.high)
        for i, load in _comparable_loads(evidence).items()
        if (p := percentile(load.metrics.get(metric.key), 0.5)) and p.value is not None
    }
    others = [v.name for i, v in enumerate(evidence.variants) if metric.of(v) and i not in values]
    note = f"Median {metric.short} of one load run each."
    if others:
        note += f" Not drawn, for another load, an invalid run or too few requests: {', '.join(others)}."
    return Quantity(metric.key.removesuffix("_ms").replace("_", "-"), metric.short, "ms", False, values, note)


def _comparable_loads(evidence: Evidence) -> dict[int, LoadResult]:
    """The valid load runs with the same load as the first of them, by place."""
    found: dict[int, LoadResult] = {}
    first: Variant | None = None
    for i, variant in enumerate(evidence.variants):
        load = variant.bench.load if variant.bench else None
        if load and not load.doubt and same_load(variant, first or variant):
            first = first or variant
            found[i] = load
    return found


def _size(evidence: Evidence) -> Quantity:
    values = {
        i: Estimate(value=v.checkpoint.weight_bytes / 1e6)
        for i, v in enumerate(evidence.variants)
        if v.checkpoint and v.checkpoint.weight_bytes
    }
    note = "Weight files on disk." if len(values) > 1 else "The checkpoint folders are gone."
    return Quantity("size", "weights", "MB", False, values, note)


def _percent(share: float) -> float:
    return 100 * share
