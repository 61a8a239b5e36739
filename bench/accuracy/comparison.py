"""Item scores to task scores: accuracy alone, and paired with the baseline's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench import statistics
from qdeploy.bench.accuracy.encoding import EncodedItem
from qdeploy.bench.accuracy.items import Metric, Task
from qdeploy.bench.accuracy.scoring import ItemScore
from qdeploy.bench.records import TaskScore
from qdeploy.errors import ComparisonError

Pairs = Sequence[tuple[ItemScore, ItemScore | None]]
Baseline = Mapping[tuple[str, str], ItemScore]
"""(task, doc_id) → the baseline's score."""
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


def answer_changed(pairs: Sequence[tuple[ItemScore, ItemScore]]) -> NDArray[np.bool_]:
    """Of which items the two models chose another answer."""
    return np.array([_answer(own) != _answer(other) for own, other in pairs])


def _answer(score: ItemScore) -> int | str | None:
    return score.response if score.predicted is None else score.predicted


def compare(score: TaskScore, pairs: Sequence[tuple[ItemScore, ItemScore]]) -> TaskScore:
    """`score` with all that follows from (variant's, baseline's) scores of the same items."""
    found = answers(score.metric, pairs)
    flips = statistics.share(found.baseline != found.variant, found.clusters)
    compared = score.model_copy(
        update={
            "baseline_accuracy": statistics.accuracy_interval(found.baseline, found.clusters),
            "difference": statistics.suite_difference([found]),
            "recovery": statistics.suite_recovery([found]),
            "flips": flips,
            "answer_changes": statistics.share(answer_changed(pairs), found.clusters),
            "mcnemar_p": statistics.mcnemar(*statistics.changes(found.baseline, found.variant)),
            "difference_p": statistics.difference_p(found),
            "detectable": statistics.detectable_difference(flips.value, len(pairs)),
        }
    )
    return compared if score.margin is None else _judged(compared, [found], score.margin)


def pairs_of(
    score: TaskScore, scores: Iterable[ItemScore], baseline: Baseline
) -> list[tuple[ItemScore, ItemScore]]:
    """(variant's, baseline's) items of a task or of one of its parts."""
    task, kind = score.part_of or score.task, score.title if score.part_of else ""
    own = [s for s in scores if s.task == task and kind in ("", s.kind)]
    return [(s, baseline[s.task, s.doc_id]) for s in own]


def suite_score(
    compared: Sequence[TaskScore], scores: Sequence[ItemScore], baseline: Baseline, margin: float
) -> TaskScore | None:
    """The mean over tasks, each by its first metric, with the same figures and a verdict of its own.

    Returns:
        None for a single task, or where tasks were sampled to different shares.
    """
    whole = {score.task: score for score in reversed(compared) if score.part_of is None}
    if len(whole) < 2 or len({tuple(score.looks) for score in whole.values()}) > 1:
        return None
    paired = [pairs_of(score, scores, baseline) for score in whole.values()]
    tasks = [answers(score.metric, pairs) for score, pairs in zip(whole.values(), paired, strict=True)]
    swapped = [statistics.Pairs(task.variant, task.baseline, task.clusters) for task in tasks]
    flipped = np.concatenate([task.baseline != task.variant for task in tasks])
    clusters = [label for task in tasks for label in task.clusters]
    score = TaskScore(
        task="suite",
        title=f"Mean of {len(tasks)} tasks",
        source=", ".join(reversed(whole)),
        items=len(flipped),
        metric="mean",
        accuracy=statistics.suite_mean(tasks),
        margin=margin,
        baseline_accuracy=statistics.suite_mean(swapped),
        difference=statistics.suite_difference(tasks),
        recovery=statistics.suite_recovery(tasks),
        flips=statistics.share(flipped, clusters),
        answer_changes=statistics.share(np.concatenate([answer_changed(p) for p in paired]), clusters),
        looks=next(iter(whole.values())).looks,
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
    error = statistics.moments(tasks).error(1.0)
    return statistics.items_for_verdict(
        score.items * error * error or statistics.high_of(score.flips), distance
    )
