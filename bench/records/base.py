"""What every record is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["pass", "fail", "inconclusive"]


class Record(BaseModel):
    """Base: unknown keys are refused so that a misspelt figure cannot vanish."""

    model_config = ConfigDict(extra="forbid")


class Estimate(Record):
    """A figure with its 95 % confidence interval; `low` and `high` are None where it cannot be had."""

    value: float
    low: float | None = None
    high: float | None = None

    def mapped(self, to: Callable[[float], float]) -> Estimate:
        """Figure and interval under a function that never falls."""
        low, high = (None if bound is None else to(bound) for bound in (self.low, self.high))
        return Estimate(value=to(self.value), low=low, high=high)


class Engine(Record):
    """What served the model. `kernel` is what the engine's own log says it runs quantized layers with."""

    name: str
    version: str | None = None
    base_url: str
    model: str
    local: bool = False
    kernel: str | None = None
    quantization: str | None = None
    arguments: list[str] = Field(default_factory=list)
    load_seconds: float | None = None
    checkpoint: str | None = None
