"""What one unit in one scheme does to the model's predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from qdeploy.schemes import Scheme

Score = Literal["gradient", "kl"]


@dataclass(frozen=True, slots=True)
class Harm:
    """KL divergence of the model's predictions from those in 16 bit.

    Attributes:
        nats: mean over tokens.
        error: standard error of `nats` over what it is the mean of; None of a single one.
    """

    nats: float
    error: float | None

    @classmethod
    def mean(cls, values: Tensor) -> Harm:
        """Of independent estimates [n]."""
        values, n = values.double(), len(values)
        return cls(float(values.mean()), float(values.std()) / n**0.5 if n > 1 else None)


Harms = Mapping[tuple[str, Scheme], Harm]
"""Name of a unit and scheme → harm of that alone, all else in 16 bit."""
