"""Item scores to task scores: accuracy alone, and paired with the baseline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qdeploy.bench import statistics
from qdeploy.bench.accuracy.encoding import EncodedItem
from qdeploy.bench.accuracy.items import Metric, Task
from qdeploy.bench.accuracy.scoring import ItemScore
from qdeploy.bench.records import Estimate, TaskScore, Verdict
from qdeploy.errors import ComparisonError

Pairs = Sequence[tuple[ItemScore, ItemScore | None]]


def pair(
    task: Task, scores: Sequence[ItemScore], baseline: Mapping[tuple[str, str], ItemScore] | None
) -> list[tuple[ItemScore, ItemScore | None]]:
    """Each item's score with the baseline's score of the same item (None where there is no baseline)."""
    own = [score for score in scores if score.task == task.name]
    return [(s, baseline[s.task, s.doc_id] if baseline is not None else None) for s in own]


def check_pairable(
    task: Task, items: Sequence[EncodedItem], baseline: Mapping[tuple[str, str], ItemScore]
) -> None:
    """Refuse a baseline that answered other questions, before anything is scored.

    Raises:
        ComparisonError: an item is missing from the baseline or was another token sequence there.
    """
    for encoded in items:
        other = baseline.get((task.name, encoded.item.doc_id))
        if other is None:
            known = sum(name == task.name for name, _ in baseline)
            raise ComparisonError(
                f"The baseline run has no item {encoded.item.doc_id!r} of task {task.name} ({known} of "
                f"{len(items)} items scored there). Run both with the same --tasks and --limit."
            )
        if other.prompt_hash != encoded.prompt_hash:
            raise ComparisonError(
                f"Item {encoded.item.doc_id!r} of task {task.name} was another token sequence in the "
                "baseline run: tokenizer, prompt or task version differ. Run the baseline again."
            )


def task_scores(task: Task, pairs: Pairs, margin: float) -> list[TaskScore]:
    """One score a metric, each followed by its parts where the task has kinds; verdicts on the whole only."""
    kinds = sorted({score.kind for score, _ in pairs} - {""})
    found = []
    for metric in task.metrics:
        found.append(_score(task, pairs, metric, margin))
        for kind in kinds:
            part = [p for p in pairs if p[0].kind == kind]
            found.append(_score(task, part, metric, None, kind))
    return found


def _score(task: Task, pairs: Pairs, metric: Metric, margin: float | None, kind: str = "") -> TaskScore:
    clusters = [score.cluster for score, _ in pairs]
    values = np.array([score.value(metric) for score, _ in pairs])
    score = TaskScore(
        task=f"{task.name}/{kind}" if kind else task.name,
        title=kind or task.title,
        part_of=task.name if kind else None,
        source=task.source,
        items=len(pairs),
        metric=metric,
        accuracy=statistics.accuracy_interval(values, clusters),
        margin=margin,
    )
    before = np.array([other.value(metric) for _, other in pairs if other is not None])
    return _paired(score, before, values, clusters) if len(before) == len(values) else score


def _paired(
    score: TaskScore, before: statistics.Array, after: statistics.Array, clusters: Sequence[str]
) -> TaskScore:
    churn = statistics.flips(before, after)
    verdict = needed = None
    if score.margin is not None:
        verdict, needed = _verdict(before, after, clusters, score.margin, churn)
    return score.model_copy(
        update={
            "baseline_accuracy": statistics.accuracy_interval(before, clusters),
            "difference": statistics.paired_difference(before, after, clusters),
            "recovery": statistics.recovery(before, after, clusters),
            "flips": churn,
            "mcnemar_p": statistics.mcnemar(*statistics.changes(before, after)),
            "verdict": verdict,
            "items_needed": needed,
            "detectable": statistics.detectable_difference(churn.value, len(after)),
        }
    )


def _verdict(
    before: statistics.Array,
    after: statistics.Array,
    clusters: Sequence[str],
    margin: float,
    churn: Estimate,
) -> tuple[Verdict | None, int | None]:
    """The verdict and, where it is inconclusive, how many items would settle it."""
    verdict = statistics.verdict(before, after, clusters, margin)
    slack = margin * float(before.mean())
    if verdict != "inconclusive" or slack == 0:
        return verdict, None
    design = statistics.design_effect(after - before, clusters)
    expected = churn.value or (churn.high or 0.0)
    return verdict, statistics.items_for_verdict(expected, slack, design)
