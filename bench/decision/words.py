"""The decision in words."""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.bench.plan import BASELINE, Plan
from qdeploy.bench.records import Optimum, Standing
from qdeploy.bench.report import numbers
from qdeploy.bench.report.decision import figure_words

BEST: dict[Optimum, str] = {
    "rate": "keeps the objective up to the highest rate",
    "cost": "costs least of those that keep the objective",
    "size": "is the smallest of those that keep the objective",
}


def headline(best: Standing | None, ties: Sequence[str], waiting: Sequence[str], optimize: Optimum) -> str:
    """What to do, why, and what is still open.

    Args:
        ties: names of variants whose figure is not told from the best one's.
        waiting: names of variants that are open and may be better.
    """
    if best is None and not waiting:
        return "No variant keeps the objective."
    if best is None:
        return f"Nothing can be recommended yet. Undecided: {listed(waiting)}."
    when = " for now" if waiting else ""
    text = f"Deploy {called(best.name)}{when}: it {BEST[optimize]}{_shown(best, optimize)}."
    if ties:
        text += f" The runs do not tell {listed(ties)} from it."
    if waiting:
        text += f" Undecided and perhaps better: {listed(waiting)}."
    return text


def called(name: str) -> str:
    """A variant as one speaks of it."""
    return "the 16-bit baseline" if name == BASELINE else name


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    words = [called(name) for name in names]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def objective_words(plan: Plan) -> str:
    """All that a variant must keep, and what is best."""
    load, objective = plan.load, plan.objective
    parts = []
    if load and load.slo:
        parts.append(f"{load.slo} {_load_words(plan)}")
    if objective.fail_if:
        parts.append(f"none of {', '.join(objective.fail_if)}")
    elif plan.eval:
        parts.append(f"at least {numbers.percent(1 - plan.eval.margin)} of the baseline's accuracy")
    best = {"rate": "then the highest rate", "cost": "then the lowest cost", "size": "then the smallest"}
    return "; ".join([*parts, best[plan.optimum]])


def _load_words(plan: Plan) -> str:
    assert plan.load is not None
    if plan.load.rate:
        return f"at {numbers.number(plan.load.rate)} requests/s"
    return f"with {plan.load.concurrency} at a time" if plan.load.concurrency else "under the trace"


def _shown(best: Standing, optimize: Optimum) -> str:
    return f", {figure_words(best, optimize)}" if best.figure else ""
