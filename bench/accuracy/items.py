"""What a task is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Metric = Literal["acc", "acc_norm"]


@dataclass(frozen=True, slots=True)
class Item:
    """One multiple-choice question: the choice whose continuation is likeliest is the answer.

    Attributes:
        doc_id: unique within the task.
        cluster: items that share a template or passage, and so may err together.
        requests: one (context, continuation) a choice.
        gold: index of the right choice.
        lengths: of each choice in characters, by which acc_norm divides.
        kind: part of the task that it belongs to; empty where the task has no parts.
    """

    doc_id: str
    cluster: str
    requests: tuple[tuple[str, str], ...]
    gold: int
    lengths: tuple[int, ...]
    kind: str = ""


@dataclass(frozen=True)
class Task:
    """A named list of items, where they come from, and what is counted."""

    name: str
    title: str
    source: str
    items: Sequence[Item]
    metrics: tuple[Metric, ...] = ("acc",)
