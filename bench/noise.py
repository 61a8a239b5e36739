"""The noise floor: what a model differs from itself by, when it is asked the same in another order.

An engine's sums depend on which requests share a batch, so that even 16 bits against the same 16 bits flip
some answers. A figure of a variant that is not beyond the baseline's own is not called a difference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from qdeploy.bench.records import Fidelity, Noise, TaskScore
from qdeploy.bench.statistics import high_of, low_of

SEED = 1
T = TypeVar("T")


def shuffled(values: Sequence[T]) -> list[T]:
    """The values in the order in which a second measurement asks for them."""
    return random.Random(SEED).sample(values, len(values))


def with_floor(scores: Sequence[TaskScore], noise: Noise | None) -> list[TaskScore]:
    """The scores with the floor of each task; no task fails by a difference that is not beyond it."""
    floors = {(floor.task, floor.metric): floor for floor in (noise.tasks if noise else [])}
    return [_settled(score, floors.get((score.task, score.metric))) for score in scores]


def _settled(score: TaskScore, floor: TaskScore | None) -> TaskScore:
    if floor is None or floor.difference is None or score.difference is None:
        return score
    found = score.model_copy(
        update={"noise_difference": abs(floor.difference.value), "noise_flips": floor.flips}
    )
    if found.verdict == "fail" and not beyond_floor(found):
        return found.model_copy(update={"verdict": "inconclusive", "inferiority_p": 1.0})
    return found


def under_floor(suite: TaskScore | None, noise: Noise | None) -> TaskScore | None:
    """The same of a suite's score."""
    return with_floor([suite], noise)[0] if suite else None


def beyond_floor(score: TaskScore) -> bool:
    """Whether the difference is larger than the baseline's to itself; true where that was not measured."""
    if score.difference is None or score.noise_difference is None:
        return True
    return abs(score.difference.value) > score.noise_difference


def is_difference(score: TaskScore) -> bool:
    """Whether the score may be called different: zero is outside the interval, and it is beyond the floor."""
    found = score.difference
    if found is None or found.low is None or found.high is None:
        return False
    return not found.low <= 0 <= found.high and beyond_floor(score)


def doubt(score: TaskScore) -> str:
    """What to add to a difference that may not be called one; empty where it may."""
    if not beyond_floor(score):
        return ", within noise"
    return "" if is_difference(score) else ", not significant"


def is_divergence(fidelity: Fidelity, noise: Noise | None) -> bool:
    """Whether the divergence is beyond the floor, interval above interval; true where none was measured."""
    found = fidelity.kl_lower_bound
    floor = noise.fidelity.kl_lower_bound if noise and noise.fidelity else None
    return found is None or floor is None or low_of(found) > high_of(floor)
