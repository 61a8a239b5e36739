"""Task names to tasks: the built-in smoke suite, BOSS, lm-eval's definitions, or a suite of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qdeploy.bench.accuracy.boss.tasks import boss_task, is_boss
from qdeploy.bench.accuracy.items import Task
from qdeploy.bench.accuracy.suites import Entry, known, suite
from qdeploy.errors import UsageError
from qdeploy.progress import warn


@dataclass
class Loaded:
    """Tasks to ask.

    Attributes:
        skipped: tasks of the suite that cannot be asked → why.
        incomplete: tasks with another number of documents than the release has → what is there.
    """

    tasks: list[Task] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    incomplete: dict[str, str] = field(default_factory=dict)


def load_tasks(
    names: Sequence[str],
    limit: int | None,
    *,
    of_suite: str | None = None,
    shots: int | None = None,
    data_dir: Path | None = None,
) -> Loaded:
    """The tasks named and those of a suite. What a suite lacks is skipped, and said.

    Args:
        limit: items of each task, the first ones.
        shots: examples before each question, where the task leaves it open.
        data_dir: folder with the data sets' original files; None: the hub.

    Raises:
        UsageError: lm-eval is needed and missing; a named task, or every one of the suite, cannot be asked.
    """
    loaded = Loaded()
    for name in dict.fromkeys(names):
        loaded.tasks += _named(name, limit, shots, data_dir)
    for entry in suite(of_suite) if of_suite else ():
        _add(loaded, entry, limit, shots, data_dir)
    for task in loaded.tasks:
        rows = known(task.name).rows
        if rows is not None and task.rows != rows:
            loaded.incomplete[task.name] = f"{task.rows} documents where the release has {rows}"
            warn(f"{task.name}: {loaded.incomplete[task.name]}.")
    if of_suite and not loaded.tasks:
        raise UsageError(f"--suite {of_suite}: none of its tasks can be asked. Give --data-dir.")
    return loaded


def _add(loaded: Loaded, entry: Entry, limit: int | None, shots: int | None, data_dir: Path | None) -> None:
    try:
        found = _named(entry.task, limit, shots if entry.shots is None else entry.shots, data_dir)
        loaded.tasks += [_counting(task, entry.metric) for task in found]
    except UsageError as error:
        loaded.skipped[entry.task] = str(error)
        warn(f"{entry.task} is skipped: {error}")


def _counting(task: Task, metric: str) -> Task:
    """The task with this metric alone."""
    if metric not in task.metrics and metric not in task.totals:
        counted = ", ".join([*task.metrics, *task.totals])
        raise UsageError(f"{task.name} does not count {metric}, but {counted}.")
    return replace(
        task,
        metrics=tuple(m for m in task.metrics if m == metric),
        totals={m: total for m, total in task.totals.items() if m == metric},
    )


def _named(name: str, limit: int | None, shots: int | None, data_dir: Path | None) -> list[Task]:
    if name == "smoke":
        from qdeploy.bench.smoke import smoke_suite

        task = smoke_suite()
        return [replace(task, items=task.items[:limit])]
    if is_boss(name):
        return [boss_task(name, limit, data_dir)]
    from qdeploy.bench.accuracy.harness import harness_tasks

    return harness_tasks(name, limit, shots, known(name).cluster, data_dir)
