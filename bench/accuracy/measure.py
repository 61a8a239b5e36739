"""The accuracy half of an evaluation: ask the tasks' questions, and compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qdeploy.bench.accuracy.asking import Shortcuts
from qdeploy.bench.accuracy.comparison import Looks, pair, suite_score, task_scores
from qdeploy.bench.accuracy.journal import Journal
from qdeploy.bench.accuracy.sampling import Tasks, until_decided
from qdeploy.bench.accuracy.scoring import ItemScore, score_items
from qdeploy.bench.accuracy.table import write_items
from qdeploy.bench.accuracy.totals import task_figures
from qdeploy.bench.noise import under_floor, with_floor
from qdeploy.bench.records import Noise, TaskFigure, TaskScore
from qdeploy.engines.endpoint import Endpoint


@dataclass(frozen=True)
class Asking:
    """How to ask.

    Attributes:
        concurrency: requests in flight.
        shortcuts: what the endpoint can do.
        shuffled: not in the order in which beginnings are shared, so that other requests share a batch.
        until_decided: stop where every task has its verdict.
        margin: share of the baseline's accuracy that may be lost.
    """

    concurrency: int
    shortcuts: Shortcuts
    shuffled: bool
    until_decided: bool
    margin: float


@dataclass(frozen=True)
class Baseline:
    """The baseline's scores by task and document, and its noise floor where it was measured."""

    items: Mapping[tuple[str, str], ItemScore]
    noise: Noise | None


@dataclass(frozen=True)
class Accuracy:
    """Scores of the tasks, of the suite that they make against a baseline, and figures that are no shares."""

    tasks: list[TaskScore] = field(default_factory=list)
    suite: TaskScore | None = None
    figures: list[TaskFigure] = field(default_factory=list)


def measure_accuracy(
    endpoint: Endpoint,
    tasks: Tasks,
    asking: Asking,
    journal: Journal,
    folder: Path,
    baseline: Baseline | None,
) -> Accuracy:
    """Write items.parquet into `folder` and return the figures.

    Raises:
        EndpointError: the endpoint fails for good. All answers that have arrived are in the journal.
        Interrupted: Ctrl-C; likewise.
    """
    if not tasks:
        return Accuracy()

    def score(asked: Tasks) -> list[ItemScore]:
        return score_items(endpoint, asked, asking.concurrency, journal, asking.shortcuts, asking.shuffled)

    looks: dict[str, Looks] = {}
    if asking.until_decided and baseline:
        scores, looks = until_decided(tasks, score, baseline.items, asking.margin, baseline.noise)
    else:
        scores = score(tasks)
    write_items(folder / "items.parquet", scores)
    pairs = [(task, pair(task, scores, baseline.items if baseline else None)) for task, _ in tasks]
    found = [
        compared
        for task, paired in pairs
        for compared in task_scores(task, paired, asking.margin, looks.get(task.name, ()))
    ]
    figures = [figure for task, paired in pairs for figure in task_figures(task, paired)]
    if baseline is None:
        return Accuracy(found, figures=figures)
    suite = suite_score(found, scores, baseline.items, asking.margin)
    return Accuracy(with_floor(found, baseline.noise), under_floor(suite, baseline.noise), figures)
