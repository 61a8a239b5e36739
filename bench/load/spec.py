"""What load to put on an endpoint."""

from __future__ import annotations

import secrets
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qdeploy.bench.load.figures.slo import Limit, parse_slo

OpenArrival = Literal["poisson", "gamma", "constant"]
Arrival = Literal["poisson", "gamma", "constant", "trace", "closed"]


class LoadSpec(BaseModel):
    """One load run: an open loop at `rate` requests per second or by a trace, or `concurrency` users.

    `seed` fixes the arrival times and, with `salt`, the prompts. The salt is new for every run unless given,
    so that no run is served from the prefix cache that an earlier one filled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float | None = Field(None, gt=0)
    end_rate: float | None = Field(None, gt=0)
    """Where the rate gets to, linearly from `rate`, by the last request."""
    arrival: OpenArrival = "poisson"
    burstiness: float = Field(1.0, gt=0)
    """Shape of gamma gaps: their squared coefficient of variation is 1 / burstiness; 1 is Poisson."""
    trace: str | None = None
    """File of arrival times and lengths (see `traces`)."""
    time_scale: float = Field(1.0, gt=0)
    """Seconds of the run for a second of the trace: 0.5 replays it twice as fast."""
    concurrency: int | None = Field(None, ge=1)

    requests: int = Field(200, ge=2)
    prompt_tokens: int = Field(128, ge=1)
    output_tokens: int = Field(32, ge=1)
    dataset: str | None = None
    """File of prompts or conversations (see `datasets`); without one, prompts are drawn at random."""
    turns: int = Field(1, ge=1)
    """Most requests made of one conversation, each with the turns before it."""

    chat: bool | None = None
    """The chat route or the completions route; None takes what the endpoint offers."""
    stream: bool = True
    ignore_eos: bool = True
    stop: tuple[str, ...] = ()

    seed: int = Field(0, ge=0)
    salt: str = Field(default_factory=lambda: secrets.token_hex(4), pattern="^[0-9a-f]+$")
    warmup: int = Field(4, ge=0)
    timeout_s: float = Field(600.0, gt=0)

    slo: str | None = None
    """Limits such as "p99_ttft=500ms,p99_tpot=50ms", or the name of a preset."""
    price_per_hour: float | None = Field(None, gt=0)

    @field_validator("slo")
    @classmethod
    def _slo_can_be_read(cls, slo: str | None) -> str | None:
        if slo is not None:
            parse_slo(slo)
        return slo

    @model_validator(mode="after")
    def _one_loop(self) -> LoadSpec:
        if [self.rate, self.concurrency, self.trace].count(None) != 2:
            raise ValueError("give either `rate` (open loop), `concurrency` (closed loop) or `trace`")
        if self.end_rate and not self.rate:
            raise ValueError("`end_rate` is where an open loop's rate gets to: give `rate` too")
        if self.burstiness != 1 and self.arrival != "gamma":
            raise ValueError(f"`burstiness` is of gamma arrivals, not {self.arrival}: give `arrival` gamma")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> LoadSpec:
        if self.trace and self.dataset:
            raise ValueError("`trace` sets the lengths of its own prompts: leave out `dataset`")
        if self.turns > 1 and not (self.dataset and self.chat is not False):
            raise ValueError("`turns` are of conversations: give `dataset`, on the chat route")
        if not self.stream and any(limit.metric in ("ttft", "tpot") for limit in self.limits):
            raise ValueError("without `stream` there is no first token: let `slo` limit e2e or ntpot")
        return self

    @property
    def mode(self) -> Arrival:
        """How requests arrive; "closed" when each waits for an earlier one to end."""
        if self.trace:
            return "trace"
        return self.arrival if self.concurrency is None else "closed"

    @property
    def mean_rate(self) -> float | None:
        """Requests per second over the whole run; None where the spec does not fix it."""
        return self.rate and (self.rate + (self.end_rate or self.rate)) / 2

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The service level objective, empty without one."""
        return parse_slo(self.slo) if self.slo else ()
