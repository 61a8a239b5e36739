"""Tasks as lm-eval defines them: its YAML, prompts, examples, filters and metrics, made into items."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from qdeploy.bench.accuracy.items import (
    Answer,
    Call,
    Generate,
    Item,
    Metric,
    Rolling,
    Task,
    Total,
    multiple_choice,
)
from qdeploy.bench.accuracy.sources.catalogue import local_data
from qdeploy.errors import UsageError

FEWSHOT_SEED = 1234
MAX_NEW_TOKENS = 256
"""Of an answer whose task sets no limit; lm-eval's default."""

NO_FILTER = "none"
RANKED = "r@1"
"""For MuTual's r@1, lm-eval 0.4.13 seeks the best of a flat list of log-likelihoods and flags, and so calls
the second choice the answer whatever the model says. acc is counted beside it."""

OUTPUTS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")


def harness_tasks(
    name: str,
    limit: int | None,
    shots: int | None = None,
    cluster_by: Sequence[str] = (),
    data_dir: Path | None = None,
) -> list[Task]:
    """The task, the group as one task of several kinds, all tasks of the tag, or what a YAML file defines.

    Data come from where the YAML says: the hub, or local files (`dataset_path: json` with `data_files`).

    Args:
        limit: items of each task, and of each part of a group; the first ones.
        shots: examples before each question, where the task does not insist on none; None: the task's own.
        cluster_by: fields of a document by which items belong together ("task": all do); none: each stands
            for itself.
        data_dir: folder with the data sets' original files; None: the hub.

    Raises:
        UsageError: lm-eval is missing, knows no such task, cannot get its data, or the task needs what an
            endpoint for text has not.
    """
    loaded = _load(name, data_dir)
    tasks = [task_of(leaf, task, limit, shots, cluster_by) for leaf, task in loaded["tasks"].items()]
    group = loaded.get("groups", {}).get(name)
    return [joined(name, tasks)] if group is not None and _alike(tasks) else tasks


def _load(name: str, data_dir: Path | None) -> Any:
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--tasks {name} is a task of lm-eval, which is not installed: pip install 'qdeploy[eval]'. "
            "The suite `smoke` needs nothing more."
        ) from error
    is_file = name.endswith((".yaml", ".yml"))
    if is_file and not Path(name).is_file():
        raise UsageError(f"--tasks {name}: no such file.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with local_data(data_dir):
            return _manager(all_tasks=not is_file).load(name)
    except (KeyError, OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--tasks {name}: lm-eval cannot load it: {error}. Without access to the hub, give the folder of "
            "the original files with --data-dir, or a YAML file whose dataset_path is json and whose "
            "dataset_kwargs name local data_files."
        ) from error


@cache
def _manager(all_tasks: bool) -> Any:
    """Reading the definitions of all tasks takes seconds; a file stands for itself."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=all_tasks)


def _alike(tasks: Sequence[Task]) -> bool:
    """Whether tasks count the same, so that they can be parts of one."""
    return len(tasks) > 1 and len({(task.metrics, *task.totals) for task in tasks}) == 1


def joined(name: str, tasks: Sequence[Task]) -> Task:
    """A group as one task: its figure is over all items, as lm-eval weighs groups by size."""
    items, graders = [], {}
    for task in tasks:
        graders[task.name] = task.grade
        items += [replace(i, doc_id=f"{task.name}/{i.doc_id}", kind=task.name) for i in task.items]

    def grade(item: Item, answers: Sequence[Answer]) -> Mapping[Metric, object]:
        own = replace(item, doc_id=item.doc_id.removeprefix(f"{item.kind}/"))
        return graders[item.kind](own, answers)

    source = tasks[0].source.replace(tasks[0].name, name, 1)
    rows = sum(task.rows or 0 for task in tasks)
    return replace(tasks[0], name=name, title=name, source=source, items=items, grade=grade, rows=rows)


def task_of(name: str, task: Any, limit: int | None, shots: int | None, cluster_by: Sequence[str]) -> Task:
    if (
        task.OUTPUT_TYPE not in OUTPUTS
        or getattr(task, "MULTIMODAL", False)
        or getattr(task, "UNSAFE_CODE", False)
    ):
        raise UsageError(
            f"--tasks {name}: it is {task.OUTPUT_TYPE} with pictures, sound or code to run; only text is "
            "asked."
        )
    if task.config.num_fewshot is None or (shots is not None and task.config.num_fewshot != 0):
        task.set_config("num_fewshot", shots or 0)
    # lm-eval's own default, so that few-shot examples are the ones of published figures.
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    try:
        task.build_all_requests(limit=limit, rank=0, world_size=1)
    except (ValueError, AttributeError, KeyError, AssertionError) as error:
        raise UsageError(f"--tasks {name}: lm-eval cannot make its prompts: {error}") from error
    asked = {str(doc): list(group) for doc, group in groupby(task.instances, key=lambda i: i.doc_id)}
    greedy = _needs_greedy(task)
    items = [replace(_item(task, doc, ones, cluster_by), greedy=greedy) for doc, ones in asked.items()]
    metadata = task.config.metadata or {}
    source = f"lm-eval {name} v{metadata.get('version', '?')}, {task.config.num_fewshot}-shot"
    metrics, totals, falling = _metrics(name, task)
    grade = partial(_grade, task, asked)
    return Task(name, name, source, items, metrics, grade, totals, falling, rows=len(task.eval_docs))


def _needs_greedy(task: Any) -> bool:
    """Whether a score may depend on what greedy decoding would write."""
    if task.OUTPUT_TYPE == "multiple_choice":
        return callable(task.config.process_results) or "exact_match" in task.aggregation()
    return bool(task.OUTPUT_TYPE == "loglikelihood")


def _metrics(name: str, task: Any) -> tuple[tuple[Metric, ...], dict[Metric, Total], frozenset[Metric]]:
    """Metrics that are means of right and wrong; the others with what makes them; those better when lower.

    Raises:
        UsageError: the task counts nothing.
    """
    from lm_eval.api.metrics import mean

    better: Mapping[str, bool] = task.higher_is_better()
    means: list[Metric] = []
    totals: dict[Metric, Total] = {}
    falling: set[Metric] = set()
    for metric, aggregate in task.aggregation().items():
        for name_of_filter in (ensemble.name for ensemble in task._filters):
            full = metric if name_of_filter == NO_FILTER else f"{metric},{name_of_filter}"
            rising = better.get(metric, True)
            if aggregate is mean and rising:
                means.append(full)
            elif metric != "bypass":
                totals[full] = aggregate
            if not rising:
                falling.add(full)
    if RANKED in means:
        means.append("acc")
    if not means and not totals:
        raise UsageError(f"--tasks {name}: its definition counts no metric.")
    return tuple(means), totals, frozenset(falling)


def _item(task: Any, doc_id: str, instances: Sequence[Any], cluster_by: Sequence[str]) -> Item:
    doc = instances[0].doc
    name = task.config.task
    choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else []
    shared = "task" if "task" in cluster_by else "/".join(str(doc[f]) for f in cluster_by if f in doc)
    return Item(
        doc_id=doc_id,
        cluster=f"{name}/{shared or doc_id}",
        requests=tuple(call for instance in instances for call in _calls(instance)),
        gold=_gold(task, doc, doc_id, choices) if choices else None,
        lengths=tuple(len(choice) for choice in choices),
    )


def _gold(task: Any, doc: Any, doc_id: str, choices: Sequence[str]) -> int | None:
    """Index of the one right choice.

    Raises:
        UsageError: the document's answer is none of its choices.
    """
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    index = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
    if isinstance(index, int) and 0 <= index < len(choices):
        return index
    if task.multiple_target or callable(task.config.process_results):
        return None
    raise UsageError(f"Item {doc_id} of {task.config.task}: its answer {gold!r} is none of {list(choices)}.")


def _calls(instance: Any) -> Iterable[Call]:
    if instance.request_type == "loglikelihood":
        context, continuation = instance.args
        return [(str(context), str(continuation))]
    if instance.request_type == "loglikelihood_rolling":
        return [Rolling(str(instance.args[0]))]
    context, options = instance.args
    return [replace(_generate(str(context), options), repeat=n) for n in range(instance.repeats or 1)]


def _generate(context: str, options: Mapping[str, Any]) -> Generate:
    """lm-eval's `generation_kwargs` in one form; greedy unless sampling is asked for."""
    from lm_eval.models.utils import normalize_gen_kwargs

    given: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), MAX_NEW_TOKENS))
    until, most, sample = given.pop("until"), given.pop("max_gen_toks"), given.pop("do_sample")
    sampling = tuple(sorted(given.items())) if sample else ()
    return Generate(context, tuple(map(str, until)), most, sampling)


def _grade(
    task: Any, asked: Mapping[str, Sequence[Any]], item: Item, answers: Sequence[Answer]
) -> Mapping[Metric, object]:
    """lm-eval's own filters and `process_results` on one document's answers."""
    instances, found, rest = asked[item.doc_id], {}, iter(answers)
    for instance in instances:
        count = (instance.repeats or 1) if instance.request_type == "generate_until" else 1
        instance.resps = [_as_lm_eval(task, next(rest)) for _ in range(count)]
    for ensemble in task._filters:
        ensemble.apply(instances)
        results = [instance.filtered_resps[ensemble.name] for instance in instances]
        for metric, value in task.process_results(instances[0].doc, results).items():
            found[metric if ensemble.name == NO_FILTER else f"{metric},{ensemble.name}"] = value
    return {**multiple_choice(item, answers), **found} if RANKED in found else found


def _as_lm_eval(task: Any, answer: Answer) -> object:
    """What lm-eval's models return: text, (log-likelihood, greedy), or a log-likelihood."""
    if isinstance(answer, str):
        return answer
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return answer.loglikelihood
    return answer.loglikelihood, bool(answer.greedy)
