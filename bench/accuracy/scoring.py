"""Answers to item scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.bench.accuracy.asking import NO_SHORTCUTS, Shortcuts
from qdeploy.bench.accuracy.encoding import EncodedItem
from qdeploy.bench.accuracy.items import Answer, Likelihood, Metric, Task, choice_likelihoods
from qdeploy.bench.accuracy.journal import Journal, key
from qdeploy.bench.accuracy.scheduler import answer_all
from qdeploy.engines.endpoint import Endpoint
from qdeploy.errors import UsageError

JOURNAL = "answers.jsonl"
"""In the folder of the run for as long as it is not whole."""


@dataclass(frozen=True, slots=True)
class ItemScore:
    """A row of `items.parquet`.

    Attributes:
        prompt_hash: of the token ids that were sent.
        gold, predicted: index of the right and of the likeliest choice; None where there is no such.
        correct, correct_norm: the values of acc and acc_norm; None where the task does not count them.
        loglikelihoods: of each choice, or of what was scored, nats.
        lengths: of each choice, characters.
        split: a token spans context and continuation in some choice.
        values: of each metric whose figure is the items' mean.
        parts: JSON object, of each metric that is made from all items: what this item adds to it.
        response: the generated text; None where none was asked for.
    """

    task: str
    kind: str
    doc_id: str
    cluster: str
    prompt_hash: str
    gold: int | None
    predicted: int | None
    correct: float | None
    correct_norm: float | None
    loglikelihoods: list[float]
    lengths: list[int]
    split: bool
    values: dict[Metric, float]
    parts: str = "{}"
    response: str | None = None

    def value(self, metric: str) -> float:
        """The item's score under `metric`."""
        return self.values[metric]


Encoded = Sequence[tuple[Task, Sequence[EncodedItem]]]


def score_items(
    endpoint: Endpoint,
    tasks: Encoded,
    concurrency: int,
    journal: Journal,
    shortcuts: Shortcuts = NO_SHORTCUTS,
    shuffled: bool = False,
) -> list[ItemScore]:
    """Score the items of tasks over the endpoint; the same request is sent once, and none that was answered.

    Args:
        shortcuts: what the endpoint can do.
        shuffled: not in the order in which beginnings are shared.

    Raises:
        EndpointError: the endpoint fails or returns no prompt log-probabilities.
        Interrupted: Ctrl-C; the journal holds what was answered.
    """
    requests = (request for _, items in tasks for item in items for request in item.requests)
    answer_all(endpoint, requests, journal, concurrency, shortcuts, shuffled)
    return [grade(task, item, _answers(item, journal)) for task, items in tasks for item in items]


def open_journal(folder: Path, endpoint: Endpoint, tokenizer_sha256: str) -> Journal:
    """The journal in a run folder, for the model that the endpoint serves now."""
    return Journal(folder / JOURNAL, served(endpoint, tokenizer_sha256))


def served(endpoint: Endpoint, tokenizer_sha256: str) -> dict[str, Any]:
    """What tells the model that the endpoint serves now from another one."""
    version = (endpoint.get_optional("/version") or {}).get("version")
    return {"name": endpoint.model, "root": endpoint.root, "engine": version, "tokenizer": tokenizer_sha256}


def _answers(item: EncodedItem, journal: Journal) -> list[Answer]:
    """One a call; the windows of a rolling text are added up."""
    found: list[Answer] = []
    for call in item.calls:
        answers = [journal.answers[key(request)] for request in call]
        likelihoods = [answer.loglikelihood for answer in answers if isinstance(answer, Likelihood)]
        found.append(answers[0] if len(answers) == 1 else Likelihood(sum(likelihoods)))
    return found


def grade(task: Task, encoded: EncodedItem, answers: Sequence[Answer]) -> ItemScore:
    """What the answers are worth, by the task's own rules.

    Raises:
        UsageError: the task says that it counts a metric, and gives no number for it.
    """
    item = encoded.item
    found = task.grade(item, answers)
    values = {metric: _number(task, item.doc_id, metric, found.get(metric)) for metric in task.metrics}
    choices = choice_likelihoods(item, answers)
    scored = [answer.loglikelihood for answer in answers if isinstance(answer, Likelihood)]
    texts = [answer for answer in answers if isinstance(answer, str)]
    return ItemScore(
        task=task.name,
        kind=item.kind,
        doc_id=item.doc_id,
        cluster=item.cluster,
        prompt_hash=encoded.prompt_hash,
        gold=item.gold,
        predicted=int(np.argmax(choices)) if len(choices) else None,
        correct=values.get("acc"),
        correct_norm=values.get("acc_norm"),
        loglikelihoods=scored,
        lengths=list(item.lengths),
        split=encoded.split,
        values=values,
        parts=json.dumps({metric: found[metric] for metric in task.totals}, default=_plain),
        response="\n".join(texts) if texts else None,
    )


def _number(task: Task, doc_id: str, metric: Metric, value: object) -> float:
    if not isinstance(value, Real | np.generic):
        raise UsageError(
            f"Task {task.name} gives {value!r} for {metric} of item {doc_id}, which is no number."
        )
    return float(value)


def _plain(value: object) -> object:
    """numpy's numbers and arrays as JSON."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
