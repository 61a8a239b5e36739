"""From how each variant stands to which one to deploy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qdeploy.bench.decision.words import headline
from qdeploy.bench.records import Decision, Optimum, Standing, Verdict
from qdeploy.bench.statistics import high_of, low_of


def choose(standings: Sequence[Standing], optimize: Optimum, objective: str) -> Decision:
    """The best variant of those that may be deployed, whatever ties with it, and how sure that is.

    Of variants whose figures are not told apart the one with the better sure bound is recommended, then the
    smaller. What is open or was not measured never is; it leaves the decision open unless its figure shows
    that it could not be better.
    """
    able = [standing for standing in standings if standing.verdict == "pass"]
    waiting = [standing for standing in standings if standing.verdict == "inconclusive"]
    best = min(able, key=lambda s: _order(s, optimize), default=None)
    if best is None:
        verdict: Verdict = "inconclusive" if waiting else "fail"
    else:
        waiting = [standing for standing in waiting if not better(best, standing, optimize)]
        verdict = "inconclusive" if waiting else "pass"
    ties = [s.name for s in able if best and s is not best and not better(best, s, optimize)]
    return Decision(
        objective=objective,
        optimize=optimize,
        verdict=verdict,
        recommended=best.name if best else None,
        ties=ties,
        headline=headline(best, ties, [s.name for s in waiting], optimize),
        standings=list(standings),
    )


def better(one: Standing, other: Standing, optimize: Optimum) -> bool:
    """Whether `one` is shown to be better: its interval lies wholly on the better side of the other's."""
    ours, theirs = one.figure, other.figure
    if ours is None or theirs is None:
        return False
    if optimize == "rate":
        return low_of(ours) > high_of(theirs)
    return high_of(ours) < low_of(theirs)


def _order(standing: Standing, optimize: Optimum) -> tuple[float, float]:
    """Ascending from the best: by the bound that is sure, then by size."""
    size = math.inf if standing.weight_bytes is None else standing.weight_bytes
    if standing.figure is None:
        return math.inf, size
    return (-low_of(standing.figure) if optimize == "rate" else high_of(standing.figure)), size
