"""Log-likelihoods of all choices, and what they make of each item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qdeploy.bench.accuracy.encoding import EncodedItem, Request
from qdeploy.engines.endpoint import Endpoint
from qdeploy.progress import progress

BLOCK = 1024
"""Sequences whose answers are held at once."""


@dataclass(frozen=True, slots=True)
class ItemScore:
    """A row of `items.parquet`.

    Attributes:
        prompt_hash: of the token ids that were scored.
        predicted: index of the likeliest choice.
        correct, correct_norm: 1.0 or 0.0, by log-likelihood and by log-likelihood per character.
        loglikelihoods: of each choice, nats.
        lengths: of each choice, characters.
        split: a token spans context and continuation in some choice.
    """

    task: str
    kind: str
    doc_id: str
    cluster: str
    prompt_hash: str
    gold: int
    predicted: int
    correct: float
    correct_norm: float
    loglikelihoods: list[float]
    lengths: list[int]
    split: bool

    def value(self, metric: str) -> float:
        """The item's score under `metric`."""
        return self.correct if metric == "acc" else self.correct_norm


def score_items(
    endpoint: Endpoint, tasks: Sequence[tuple[str, Sequence[EncodedItem]]], concurrency: int
) -> list[ItemScore]:
    """Score (task name, items) over the endpoint; the same request is sent once.

    Raises:
        EndpointError: the endpoint fails or returns no prompt log-probabilities.
    """
    requests = {r: 0.0 for _, items in tasks for item in items for r in item.requests}
    _fill(endpoint, requests, concurrency)
    return [
        grade(name, item, [requests[r] for r in item.requests]) for name, items in tasks for item in items
    ]


def _fill(endpoint: Endpoint, loglikelihoods: dict[Request, float], concurrency: int) -> None:
    """Put in the log-likelihood of every request, a block of them at a time to bound memory."""
    pending = list(loglikelihoods)
    with progress("Scoring choices", len(pending)) as bar:
        for first in range(0, len(pending), BLOCK):
            block = pending[first : first + BLOCK]
            answers = endpoint.score_many(
                [request.ids for request in block],
                concurrency=concurrency,
                on_done=lambda _index, _scores: bar.advance(),
            )
            for request, scores in zip(block, answers, strict=True):
                loglikelihoods[request] = scores.total(request.start)


def grade(task: str, encoded: EncodedItem, loglikelihoods: list[float]) -> ItemScore:
    """Which choice wins, by the rules of lm-eval's `multiple_choice`: the first of equals."""
    item = encoded.item
    lengths = np.maximum(item.lengths, 1)
    predicted = int(np.argmax(loglikelihoods))
    return ItemScore(
        task=task,
        kind=item.kind,
        doc_id=item.doc_id,
        cluster=item.cluster,
        prompt_hash=encoded.prompt_hash,
        gold=item.gold,
        predicted=predicted,
        correct=float(predicted == item.gold),
        correct_norm=float(np.argmax(np.array(loglikelihoods) / lengths) == item.gold),
        loglikelihoods=loglikelihoods,
        lengths=list(item.lengths),
        split=any(request.split for request in encoded.requests),
    )
