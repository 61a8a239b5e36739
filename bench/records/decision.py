"""Which variant to deploy, and why not the others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from qdeploy.bench.records.base import Estimate, Record, Verdict
from qdeploy.errors import ComparisonError
from qdeploy.files import read_json, write_text
from qdeploy.validation import first

DECISION = "decision.json"

Optimum = Literal["rate", "cost", "size"]
"""What is best of several variants that keep the objective: the highest rate of those tried, the lowest cost
of a million output tokens, or the smallest weight files.
"""


class Standing(Record):
    """One variant under the objective: pass may be deployed, fail is turned down, inconclusive is open.

    Attributes:
        reasons: what carries the verdict; of an open variant also what would decide.
        figure: what is optimized, in requests/s, price per million output tokens, or bytes. Of the rates that
            were tried, `low` is the highest that was shown to keep the objective, `value` the highest that
            did as observed, `high` the highest that was not shown to break it.
        weight_bytes: of the weight files; None where they are gone.
    """

    name: str
    verdict: Verdict
    reasons: list[str]
    figure: Estimate | None = None
    weight_bytes: int | None = None


class Decision(Record):
    """The answer of a campaign.

    Attributes:
        objective: what was asked, in words.
        verdict: pass: `recommended` stands whatever is still open; inconclusive: something that is open may
            be better; fail: no variant keeps the objective.
        recommended: the best of those that may be deployed; None where there is none.
        ties: variants whose figure is not told from the recommended one's.
        headline: the answer in words.
    """

    objective: str
    optimize: Optimum
    verdict: Verdict
    recommended: str | None = None
    ties: list[str] = Field(default_factory=list)
    headline: str
    standings: list[Standing]

    def save(self, folder: Path) -> None:
        """Write `decision.json` into `folder`, atomically."""
        write_text(folder / DECISION, self.model_dump_json(indent=2) + "\n")


def load_decision(folder: Path) -> Decision | None:
    """The decision of a campaign folder; None where it has not come to one.

    Raises:
        ComparisonError: decision.json is not one of this version.
    """
    path = folder / DECISION
    if not path.is_file():
        return None
    try:
        return Decision.model_validate(read_json(path))
    except ValueError as error:
        raise ComparisonError(
            f"{path} is not a decision that this version of qdeploy made ({first(error)}). "
            "`qdeploy run` with the same plan makes it anew."
        ) from error
