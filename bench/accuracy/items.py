"""What a task is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Metric = str
"""A name such as "acc", "acc_norm" or, where a filter comes before it, "exact_match,strict-match"."""


@dataclass(frozen=True, slots=True)
class Rolling:
    """A text whose every token is scored."""

    text: str


@dataclass(frozen=True, slots=True)
class Generate:
    """A text to go on from.

    Attributes:
        until: the answer ends before the first of these; the end-of-sequence token ends it too.
        max_tokens: most tokens of the answer.
        sampling: options that are sent as they are (temperature, top_p …), sorted; empty: greedy.
        repeat: which one of several samples this is.
    """

    context: str
    until: tuple[str, ...]
    max_tokens: int
    sampling: tuple[tuple[str, float], ...] = ()
    repeat: int = 0


Call = tuple[str, str] | Rolling | Generate
"""What is asked of the model: the likelihood of (context, continuation), or one of the others."""


class Likelihood(NamedTuple):
    """The answer to a (context, continuation) or a rolling text.

    Attributes:
        loglikelihood: nats.
        greedy: whether greedy decoding would write the continuation; None where nobody asked.
    """

    loglikelihood: float
    greedy: bool | None = None


Answer = Likelihood | str


@dataclass(frozen=True, slots=True)
class Item:
    """One question; of a multiple-choice question, the choice whose continuation is likeliest is the answer.

    Attributes:
        doc_id: unique within the task.
        cluster: items that share a template or passage, and so may err together.
        requests: what is asked; of multiple choice, one (context, continuation) a choice comes first.
        gold: index of the right choice; None where there is no one right choice.
        lengths: of each choice in characters, by which acc_norm divides; empty where there are no choices.
        kind: part of the task that it belongs to; empty where the task has no parts.
        greedy: the score depends on whether greedy decoding would write a continuation.
    """

    doc_id: str
    cluster: str
    requests: tuple[Call, ...]
    gold: int | None
    lengths: tuple[int, ...]
    kind: str = ""
    greedy: bool = False


Grade = Callable[[Item, Sequence[Answer]], Mapping[Metric, object]]
"""An item and the answers to its requests → a value a metric."""

Total = Callable[[Sequence[object]], float]
"""All items' values → the figure."""


def multiple_choice(item: Item, answers: Sequence[Answer]) -> dict[Metric, object]:
    """acc and acc_norm by the rules of lm-eval: the first of equals wins."""
    likelihoods = choice_likelihoods(item, answers)
    lengths = np.maximum(item.lengths, 1)
    return {
        "acc": float(np.argmax(likelihoods) == item.gold),
        "acc_norm": float(np.argmax(likelihoods / lengths) == item.gold),
    }


def choice_likelihoods(item: Item, answers: Sequence[Answer]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """[choices], nats; empty where the item has no choices."""
    answered = answers[: len(item.lengths)]
    return np.array([answer.loglikelihood for answer in answered if isinstance(answer, Likelihood)])


@dataclass(frozen=True)
class Task:
    """A named list of items, where they come from, and what is counted.

    Attributes:
        metrics: whose figure is the mean of the items' values.
        totals: metrics whose figure is made from all items at once (perplexity, F1 …).
        falling: metrics that are better when lower.
        rows: documents that there are, asked or not; None where nobody counted.
    """

    name: str
    title: str
    source: str
    items: Sequence[Item]
    metrics: tuple[Metric, ...] = ("acc",)
    grade: Grade = multiple_choice
    totals: Mapping[Metric, Total] = field(default_factory=dict)
    falling: frozenset[Metric] = frozenset()
    rows: int | None = None
