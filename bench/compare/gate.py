"""The gate: whether a pipeline may go on."""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.bench.compare.comparison import Candidate, Comparison
from qdeploy.bench.compare.conditions import Check, Condition
from qdeploy.bench.records import Record, TaskScore, Verdict

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 1, "inconclusive": 3}
"""2 is bad input. Undecided has a code of its own, so that a pipeline can score more items and ask again."""


class Judged(Record):
    """All that was checked on one candidate."""

    candidate: str
    checks: list[Check]


class Outcome(Record):
    """The gate as a whole: fail if any check fails, else inconclusive if any is, else pass."""

    verdict: Verdict
    exit_code: int
    judged: list[Judged]


def decide(comparison: Comparison, conditions: Sequence[Condition], lenient: bool = False) -> Outcome:
    """Check every candidate: by the conditions, or where there are none, by its verdict on accuracy.

    Args:
        lenient: an undecided gate opens. By default it does not: it asks for evidence, and the less was
            measured the less there is.

    Raises:
        ComparisonError, UsageError: a condition asks for what was not measured.
    """
    judged = [
        Judged(candidate=candidate.name, checks=checks(candidate, comparison.margin, conditions))
        for candidate in comparison.candidates
    ]
    found = {check.verdict for entry in judged for check in entry.checks}
    verdict: Verdict = "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"
    code = 0 if verdict == "inconclusive" and lenient else EXIT_CODES[verdict]
    return Outcome(verdict=verdict, exit_code=code, judged=judged)


def checks(candidate: Candidate, margin: float, conditions: Sequence[Condition]) -> list[Check]:
    """All that is checked on one candidate. Raises as `decide`."""
    if not conditions:
        return [_by_verdict(candidate, margin)]
    return [check for condition in conditions for check in condition.check(candidate)]


def _by_verdict(candidate: Candidate, margin: float) -> Check:
    name = f"keeps {1 - margin:.1%} of the baseline's accuracy"
    if candidate.verdict is None:
        message = "accuracy was not compared; give conditions with --fail-if or evaluations of both"
        return Check(name=name, verdict="inconclusive", message=message)
    decisive = [candidate.suite] if candidate.suite else candidate.whole_tasks
    return Check(name=name, verdict=candidate.verdict, message="; ".join(map(explain, decisive)))


def explain(score: TaskScore) -> str:
    """A task's or suite's recovery with its bounds and, where it is undecided, what it would take."""
    bounds = score.recovery_bounds
    if bounds is None:
        return f"{score.title}: the baseline scored nothing"
    text = f"{score.title}: recovery {bounds.value:.2%}"
    if bounds.low is not None and bounds.high is not None:
        text += f" [{bounds.low:.2%}, {bounds.high:.2%}]"
    further = further_items(score)
    return f"{text}, {further:,} further items needed" if further else text


def further_items(score: TaskScore) -> int | None:
    """How many items beyond those scored would most likely decide; None where it is decided or none would."""
    return None if score.items_needed is None else max(score.items_needed - score.items, 1)
