"""The objective of a campaign: what a variant must keep, and which of those that do is best."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator

from qdeploy.bench.compare import parse_condition
from qdeploy.bench.compare.conditions import Condition
from qdeploy.bench.records import Optimum
from qdeploy.errors import UsageError


class Objective(BaseModel):
    """Beside the limits in the `slo` of the load.

    Attributes:
        optimize: None: the rate where the load has an `slo`, else the size.
        rates: requests per second that are tried besides the load's own, which is what must be kept.
        fail_if: conditions of `qdeploy compare` that turn a variant down; without any, the verdict on
            accuracy decides. Those on accuracy and fidelity are not asked of the baseline.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimize: Optimum | None = None
    rates: tuple[float, ...] = ()
    fail_if: tuple[str, ...] = ()

    @field_validator("rates")
    @classmethod
    def _are_positive(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if any(rate <= 0 for rate in rates):
            raise ValueError("give requests per second above 0")
        return tuple(sorted(set(rates)))

    @field_validator("fail_if")
    @classmethod
    def _can_be_read(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            try:
                parse_condition(text)
            except UsageError as error:
                raise ValueError(str(error).removeprefix("--fail-if ")) from error
        return texts

    @property
    def conditions(self) -> list[Condition]:
        """The conditions, read."""
        return [parse_condition(text) for text in self.fail_if]
