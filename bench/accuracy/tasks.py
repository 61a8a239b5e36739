"""Task names to tasks: the built-in smoke suite, or lm-eval's definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qdeploy.bench.accuracy.items import Task


def load_tasks(names: Sequence[str], limit: int | None) -> list[Task]:
    """The tasks named; at most `limit` items of each, the first ones.

    Raises:
        UsageError: lm-eval is needed and missing, knows no such task, or cannot get its data.
    """
    found: list[Task] = []
    for name in dict.fromkeys(names):
        if name == "smoke":
            from qdeploy.bench.smoke import smoke_suite

            found.append(smoke_suite())
        else:
            from qdeploy.bench.accuracy.harness import harness_tasks

            found += harness_tasks(name, limit)
    return [replace(task, items=task.items[:limit]) for task in found]
