"""Scoring no more items than it takes: random whole clusters at a time, until every task is decided.

Looking at the verdict after each batch would err more often than it says, so each look has its own, stricter
level (`statistics.sequential`): over all looks a model that is at the margin passes in at most 5 % of runs,
and fails in at most 5 %.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from qdeploy.bench.accuracy.comparison import Looks, pair, task_scores
from qdeploy.bench.accuracy.encoding import EncodedItem
from qdeploy.bench.accuracy.items import Task
from qdeploy.bench.accuracy.scoring import ItemScore
from qdeploy.bench.noise import with_floor
from qdeploy.bench.records import Noise
from qdeploy.progress import console

LOOKS = 8
SEED = 0

Tasks = Sequence[tuple[Task, Sequence[EncodedItem]]]
Score = Callable[[Tasks], list[ItemScore]]
"""Scores the given items of each task."""


def until_decided(
    tasks: Tasks,
    score: Score,
    baseline: Mapping[tuple[str, str], ItemScore],
    margin: float,
    noise: Noise | None = None,
) -> tuple[list[ItemScore], dict[str, Looks]]:
    """Score batches of all undecided tasks until each passes or fails, or has no items left.

    Args:
        score: scores a batch.
        baseline: (task, doc_id) → the baseline's score, of all items.
        noise: the baseline's floor.

    Returns:
        All scores, and for each task the shares of its items at which it was looked at.
    """
    open_tasks = {task.name: (task, batches(items)) for task, items in tasks}
    sizes = {task.name: len(items) for task, items in tasks}
    scores: list[ItemScore] = []
    looks: dict[str, Looks] = dict.fromkeys(open_tasks, ())
    while open_tasks:
        scores += score([(task, waiting.pop(0)) for task, waiting in open_tasks.values()])
        for task, waiting in list(open_tasks.values()):
            own = [found for found in scores if found.task == task.name]
            looks[task.name] += (len(own) / sizes[task.name],)
            judged = with_floor(task_scores(task, pair(task, own, baseline), margin, looks[task.name]), noise)
            verdicts = {found.verdict for found in judged if found.part_of is None}
            if verdicts <= {"pass", "fail"} or not waiting:
                del open_tasks[task.name]
                words = " and ".join(sorted(verdict or "no verdict" for verdict in verdicts))
                console.print(f"{task.name}: {words} after {len(own)} of {sizes[task.name]} items")
    return scores, looks


def batches(items: Sequence[EncodedItem]) -> list[list[EncodedItem]]:
    """At most LOOKS batches of about equal size that cut no cluster; clusters in random order, by SEED."""
    members: dict[str, list[EncodedItem]] = {}
    for item in items:
        members.setdefault(item.item.cluster, []).append(item)
    clusters = list(members.values())
    random.Random(SEED).shuffle(clusters)
    found: list[list[EncodedItem]] = [[] for _ in range(LOOKS)]
    placed = 0
    for cluster in clusters:
        found[placed * LOOKS // len(items)] += cluster
        placed += len(cluster)
    return [batch for batch in found if batch]
