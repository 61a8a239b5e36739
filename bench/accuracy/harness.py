"""Tasks as lm-eval defines them: its YAML, prompts, few-shot examples and answers, made into items."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from qdeploy.bench.accuracy.items import Item, Metric, Task
from qdeploy.errors import UsageError

METRICS: tuple[Metric, ...] = ("acc", "acc_norm")
FEWSHOT_SEED = 1234


def harness_tasks(name: str, limit: int | None) -> list[Task]:
    """The task, or all tasks of the group or tag, called `name`; or the one that a YAML file defines.

    Data come from where the YAML says: the hub, or local files (`dataset_path: json` with `data_files`).

    Raises:
        UsageError: lm-eval is missing, knows no such task, cannot get its data, or the task is not scored as
            multiple choice by log-likelihood.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(
            f"--tasks {name} is a task of lm-eval, which is not installed: pip install 'qdeploy[eval]'. "
            "The suite `smoke` needs nothing more."
        ) from error
    is_file = name.endswith((".yaml", ".yml"))
    if is_file and not Path(name).is_file():
        raise UsageError(f"--tasks {name}: no such file.")
    try:
        # Reading the definitions of all tasks takes seconds, and a file stands for itself.
        loaded = TaskManager(include_defaults=not is_file).load(name)["tasks"]
    except (KeyError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--tasks {name}: lm-eval cannot load it: {error}. Without access to the hub, give a YAML file "
            "whose dataset_path is json and whose dataset_kwargs name local data_files."
        ) from error
    return [_task(task_name, task, limit) for task_name, task in loaded.items()]


def _task(name: str, task: Any, limit: int | None) -> Task:
    metrics = _metrics(name, task)
    # lm-eval's own default, so that few-shot examples are the ones of published figures.
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    groups = groupby(task.instances, key=lambda instance: instance.doc_id)
    items = [_item(task, str(doc_id), list(instances)) for doc_id, instances in groups]
    version = task.config.metadata.get("version", "?") if task.config.metadata else "?"
    shots = task.config.num_fewshot or 0
    return Task(name, name, f"lm-eval {name} v{version}, {shots}-shot", items, metrics)


def _metrics(name: str, task: Any) -> tuple[Metric, ...]:
    """Which of acc and acc_norm the task counts.

    Raises:
        UsageError: neither, or its results are made by code of its own.
    """
    wanted = [str(entry["metric"]) for entry in task.config.metric_list or ()]
    metrics: tuple[Metric, ...] = tuple(m for m in METRICS if m in wanted)
    standard = task.OUTPUT_TYPE == "multiple_choice" and not callable(task.config.process_results)
    if not standard or not metrics or task.multiple_target:
        raise UsageError(
            f"--tasks {name}: only multiple choice with one right answer and acc or acc_norm is scored; this "
            f"task is {task.OUTPUT_TYPE} with {', '.join(wanted) or 'no metric'}."
        )
    return metrics


def _item(task: Any, doc_id: str, instances: list[Any]) -> Item:
    doc = instances[0].doc
    choices: list[str] = task.doc_to_choice(doc)
    # acc_mutual_info adds requests without context behind the choices' own.
    requests = tuple((str(i.args[0]), str(i.args[1])) for i in instances[: len(choices)])
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    index = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
    if not isinstance(index, int) or not 0 <= index < len(choices):
        raise UsageError(f"Item {doc_id} of {task.config.task}: its answer {gold!r} is none of {choices}.")
    return Item(doc_id, f"{task.config.task}/{doc_id}", requests, index, tuple(map(len, choices)))
