"""What load to put on an endpoint."""

from __future__ import annotations

import secrets
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Arrival = Literal["poisson", "constant", "closed"]


class LoadSpec(BaseModel):
    """One load run: an open loop at `rate` requests per second, or a closed loop of `concurrency` users.

    `seed` fixes the arrival times and, with `salt`, the prompts. The salt is new for every run unless given,
    so that no run is served from the prefix cache that an earlier one filled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float | None = Field(None, gt=0)
    concurrency: int | None = Field(None, ge=1)
    arrival: Literal["poisson", "constant"] = "poisson"
    requests: int = Field(200, ge=2)
    prompt_tokens: int = Field(128, ge=1)
    output_tokens: int = Field(32, ge=1)
    seed: int = Field(0, ge=0)
    salt: str = Field(default_factory=lambda: secrets.token_hex(4), pattern="^[0-9a-f]+$")
    warmup: int = Field(4, ge=0)
    timeout_s: float = Field(600.0, gt=0)

    @model_validator(mode="after")
    def _one_loop(self) -> LoadSpec:
        if (self.rate is None) == (self.concurrency is None):
            raise ValueError("give either rate (open loop) or concurrency (closed loop)")
        return self

    @property
    def mode(self) -> Arrival:
        """How requests arrive; "closed" when each waits for an earlier one to end."""
        return self.arrival if self.concurrency is None else "closed"
