"""Scores of tasks, alone and paired with a baseline's."""

from __future__ import annotations

from pydantic import Field

from qdeploy.bench.records.base import Estimate, Record, Verdict
from qdeploy.bench.records.fidelity import Fidelity


class TaskScore(Record):
    """Accuracy on one task, alone and paired with the baseline (definitions: docs/metrics.md).

    Attributes:
        recovery_bounds: recovery with bounds that each err in 5 % of runs, however often was looked; the
            verdict at any margin follows from them.
        answer_changes: share of items whose chosen answer is another, from wrong to wrong included.
        difference_p: two-sided, by clusters.
        inferiority_p: one-sided, that the margin is kept; small where it is not.
        items_needed: in all, where the verdict is inconclusive.
        part_of: the task of which this is one kind of item (parts get no verdict).
        detectable: the smallest difference that this many items show with 80 % power at the observed flips.
        looks: shares of the planned items at which the verdict was looked at; none: once, at all.
        noise_difference, noise_flips: the same of the baseline against itself.
    """

    task: str
    title: str
    source: str
    items: int
    metric: str = "acc"
    accuracy: Estimate
    baseline_accuracy: Estimate | None = None
    difference: Estimate | None = None
    recovery: Estimate | None = None
    flips: Estimate | None = None
    mcnemar_p: float | None = None
    margin: float | None = None
    verdict: Verdict | None = None
    items_needed: int | None = None
    part_of: str | None = None
    detectable: float | None = None
    recovery_bounds: Estimate | None = None
    answer_changes: Estimate | None = None
    difference_p: float | None = None
    inferiority_p: float | None = None
    looks: list[float] = Field(default_factory=list)
    noise_difference: float | None = None
    noise_flips: Estimate | None = None


class Noise(Record):
    """The baseline against itself: the same requests once more, in another order.

    `tasks` are without parts; the suite is among them.
    """

    tasks: list[TaskScore] = Field(default_factory=list)
    fidelity: Fidelity | None = None


class TaskFigure(Record):
    """A figure of one task that is no share of its items: perplexity, F1, a bias score. No verdict."""

    task: str
    title: str
    source: str
    items: int
    metric: str
    lower_is_better: bool
    value: Estimate
    baseline_value: Estimate | None = None
    difference: Estimate | None = None
