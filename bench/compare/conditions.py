"""Conditions of a gate: `figure < number`, of a task `figure[task] < number`. None is evaluated as code."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from qdeploy.bench.compare import figures
from qdeploy.bench.compare.comparison import Candidate
from qdeploy.bench.records import Record, Verdict
from qdeploy.errors import UsageError

FORM = re.compile(
    r"\s*(?P<figure>[a-z][a-z0-9_.]*)\s*(?:\[\s*(?P<task>[^\]]+?)\s*\])?\s*"
    r"(?P<sign><=|>=|<|>)\s*(?P<limit>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*"
)
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Check(Record):
    """One condition or verdict that was looked at, and what came of it."""

    name: str
    verdict: Verdict
    message: str


@dataclass(frozen=True)
class Condition:
    """What makes the gate fail."""

    text: str
    figure: str
    task: str | None
    sign: str
    limit: float

    def check(self, candidate: Candidate) -> list[Check]:
        """Look at the figure, for `[*]` at that of every task. One of a doubtful load run decides nothing.

        Raises:
            ComparisonError, UsageError: as `figures.figures`.
        """
        found = figures.figures(candidate, self.figure, self.task)
        doubt = next(filter(None, (load.doubt for load in candidate.loads)), None)
        if doubt and figures.is_of_load(self.figure):
            return [Check(name=self.text, verdict="inconclusive", message=f"the load run is {doubt}")]
        return [self._check(where, value) for where, value in found.items()]

    def _check(self, where: str, value: float | None) -> Check:
        name = f"{self.text} ({where})" if where and where != self.task else self.text
        if value is None or value != value:
            message = f"{self.figure} cannot be stated: too few samples for it"
            return Check(name=name, verdict="inconclusive", message=message)
        failed = OPERATORS[self.sign](value, self.limit)
        return Check(name=name, verdict="fail" if failed else "pass", message=f"{self.figure} is {value:.6g}")


def parse_condition(text: str) -> Condition:
    """Read `recovery_lcb<0.99`, `p99_tpot_ms > 50` or `recovery_lcb[arc_easy]<0.99`.

    Raises:
        UsageError: another form, or a figure that does not exist.
    """
    found = FORM.fullmatch(text)
    if found is None:
        raise UsageError(
            f"--fail-if {text!r} is not of the form FIGURE<NUMBER or FIGURE[TASK]<NUMBER, with <, <=, > or "
            ">=, for example 'recovery_lcb<0.99'."
        )
    if not figures.is_known(found["figure"]):
        raise UsageError(
            f"--fail-if {text!r}: no figure {found['figure']!r}. There are {figures.describe()}."
        )
    return Condition(text.strip(), found["figure"], found["task"], found["sign"], float(found["limit"]))
