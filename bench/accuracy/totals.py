"""Figures that are made from all items of a task at once: perplexity, F1, BLEU …

Their standard errors are by the delete-a-group jackknife (Kott, "The Delete-a-Group Jackknife", Journal of
Official Statistics 17, 2001), which asks nothing of the figure but that it can be computed again without some
of the items. Clusters stay whole, and a difference leaves out the same items on both sides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from qdeploy.bench import statistics
from qdeploy.bench.accuracy.comparison import Pairs
from qdeploy.bench.accuracy.items import Metric, Task, Total
from qdeploy.bench.accuracy.scoring import ItemScore
from qdeploy.bench.records import Estimate, TaskFigure

GROUPS = 20


def task_figures(task: Task, pairs: Pairs) -> list[TaskFigure]:
    """One figure a metric, beside the baseline's where all items have one there."""
    return [_figure(task, metric, total, pairs) for metric, total in task.totals.items()]


def _figure(task: Task, metric: Metric, total: Total, pairs: Pairs) -> TaskFigure:
    own = [_part(score, metric) for score, _ in pairs]
    before = [_part(other, metric) for _, other in pairs if other is not None]
    clusters = [score.cluster for score, _ in pairs]
    figure = TaskFigure(
        task=task.name,
        title=task.title,
        source=task.source,
        items=len(pairs),
        metric=metric,
        lower_is_better=metric in task.falling,
        value=jackknife(lambda kept: total(_those(own, kept)), clusters),
    )
    if len(before) < len(own):
        return figure
    both = jackknife(lambda kept: total(_those(own, kept)) - total(_those(before, kept)), clusters)
    reference = jackknife(lambda kept: total(_those(before, kept)), clusters)
    return figure.model_copy(update={"baseline_value": reference, "difference": both})


def jackknife(compute: Callable[[Sequence[int]], float], clusters: Sequence[str]) -> Estimate:
    """`compute` of all item numbers, with an interval from leaving out one group of clusters at a time."""
    codes, count = statistics.cluster_codes(clusters)
    everything = range(len(clusters))
    value, groups = compute(everything), min(GROUPS, count)
    if groups < 2:
        return Estimate(value=value)
    left = [compute([i for i in everything if codes[i] % groups != group]) for group in range(groups)]
    error = math.sqrt((groups - 1) / groups * float(np.sum((np.array(left) - value) ** 2)))
    # Where leaving out makes no difference, as with few items that agree, nothing is known of the spread.
    if error == 0 or not math.isfinite(error):
        return Estimate(value=value)
    half = statistics.student_quantile((1 + statistics.CONFIDENCE) / 2, groups - 1) * error
    return Estimate(value=value, low=value - half, high=value + half)


def _part(score: ItemScore, metric: Metric) -> object:
    return json.loads(score.parts)[metric]


def _those(parts: Sequence[object], kept: Sequence[int]) -> list[object]:
    return [parts[i] for i in kept]
