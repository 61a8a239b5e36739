"""Item scores to task scores: accuracy alone, and paired with the baseline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qdeploy.bench import statistics
from qdeploy.bench.accuracy.encoding import EncodedItem
from qdeploy.bench.accuracy.items import Metric, Task
from qdeploy.bench.accuracy.scoring import ItemScore
from qdeploy.bench.records import Estimate, TaskScore
from qdeploy.errors import ComparisonError

Pairs = Sequence[tuple[ItemScore, ItemScore | None]]
Looks = tuple[float, ...]


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


def task_scores(task: Task, pairs: Pairs, margin: float, looks: Looks = ()) -> list[TaskScore]:
    """One score a metric, each followed by its parts where the task has kinds; verdicts on the whole only."""
    kinds = sorted({score.kind for score, _ in pairs} - {""})
    found = []
    for metric in task.metrics:
        found.append(_score(task, pairs, metric, margin, looks=looks))
        for kind in kinds:
            part = [p for p in pairs if p[0].kind == kind]
            found.append(_score(task, part, metric, None, kind))
    return found


def _score(
    task: Task, pairs: Pairs, metric: Metric, margin: float | None, kind: str = "", looks: Looks = ()
) -> TaskScore:
    clusters = [score.cluster for score, _ in pairs]
    score = TaskScore(
        task=f"{task.name}/{kind}" if kind else task.name,
        title=kind or task.title,
        part_of=task.name if kind else None,
        source=task.source,
        items=len(pairs),
        metric=metric,
        accuracy=statistics.accuracy_interval(np.array([s.value(metric) for s, _ in pairs]), clusters),
        margin=margin,
        looks=list(looks),
    )
    known = [(own, other) for own, other in pairs if other is not None]
    return compare(score, known) if len(known) == len(pairs) else score


def answers(metric: str, pairs: Sequence[tuple[ItemScore, ItemScore]]) -> statistics.Pairs:
    """The scores of (variant's, baseline's) items under `metric`, as arrays."""
    return statistics.Pairs(
        baseline=np.array([other.value(metric) for _, other in pairs]),
        variant=np.array([own.value(metric) for own, _ in pairs]),
        clusters=[own.cluster for own, _ in pairs],
    )


def compare(score: TaskScore, pairs: Sequence[tuple[ItemScore, ItemScore]]) -> TaskScore:
    """`score` with all that follows from (variant's, baseline's) scores of the same items."""
    found = answers(score.metric, pairs)
    flips = statistics.share(found.baseline != found.variant, found.clusters)
    changed = np.array([own.predicted != other.predicted for own, other in pairs])
    compared = score.model_copy(
        update={
            "baseline_accuracy": statistics.accuracy_interval(found.baseline, found.clusters),
            "difference": statistics.suite_difference([found]),
            "recovery": statistics.suite_recovery([found]),
            "flips": flips,
            "answer_changes": statistics.share(changed, found.clusters),
            "mcnemar_p": statistics.mcnemar(*statistics.changes(found.baseline, found.variant)),
            "difference_p": statistics.difference_p(found),
            "detectable": statistics.detectable_difference(flips.value, len(pairs)),
        }
    )
    return compared if score.margin is None else _judged(compared, [found], score.margin)


def suite_score(scores: Sequence[TaskScore], tasks: Sequence[statistics.Pairs], margin: float) -> TaskScore:
    """The mean over two or more tasks with the same figures and a verdict of its own.

    Args:
        scores: of whole tasks, paired; looked at once, or all at the same shares.
        tasks: their answers, in the same order.
    """
    marks = np.concatenate([task.baseline != task.variant for task in tasks])
    clusters = [label for task in tasks for label in task.clusters]
    swapped = [statistics.Pairs(task.variant, task.baseline, task.clusters) for task in tasks]
    score = TaskScore(
        task="suite",
        title=f"Mean of {len(tasks)} tasks",
        source=", ".join(score.task for score in scores),
        items=len(marks),
        metric="mean",
        accuracy=statistics.suite_mean(tasks),
        margin=margin,
        baseline_accuracy=statistics.suite_mean(swapped),
        difference=statistics.suite_difference(tasks),
        recovery=statistics.suite_recovery(tasks),
        flips=statistics.share(marks, clusters),
        looks=scores[0].looks,
    )
    return _judged(score, tasks, margin)


def _judged(score: TaskScore, tasks: Sequence[statistics.Pairs], margin: float) -> TaskScore:
    """The score with bounds, verdict, p and, where it is inconclusive, how many items would settle it."""
    level = statistics.nominal_levels(tuple(score.looks))[-1] if score.looks else statistics.LEVEL
    bounds = statistics.recovery_bounds(tasks, level)
    verdict = None if any(len(set(t.clusters)) < 2 for t in tasks) else statistics.judge(bounds, margin)
    return score.model_copy(
        update={
            "recovery_bounds": bounds,
            "verdict": verdict,
            "inferiority_p": statistics.repeated_p(statistics.inferiority_p(tasks, margin), score.looks),
            "items_needed": _items_needed(score, tasks) if verdict == "inconclusive" else None,
        }
    )


def _items_needed(score: TaskScore, tasks: Sequence[statistics.Pairs]) -> int | None:
    """How many items in all would most likely decide; None where no number would.

    Planned for what was seen where that is nearer to the margin than no difference, else for no difference.
    """
    assert score.margin is not None and score.baseline_accuracy and score.difference and score.flips
    slack = score.margin * score.baseline_accuracy.value
    distance = min(slack, abs(score.difference.value + slack))
    if distance <= 0:
        return None
    churn = score.flips.value or _high(score.flips)
    changes = np.concatenate([task.variant - task.baseline for task in tasks])
    design = statistics.design_effect(changes, [label for task in tasks for label in task.clusters])
    return statistics.items_for_verdict(churn, distance, design)


def _high(estimate: Estimate) -> float:
    return estimate.value if estimate.high is None else estimate.high
