"""How a variant kept its service level objective: at the load it is for, and up to which rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qdeploy.bench.load.figures.early_stopping import requests_needed
from qdeploy.bench.load.figures.slo import parse_slo
from qdeploy.bench.load.series.sweep import completion_rate, saturated
from qdeploy.bench.records import Cost, Estimate, LimitResult, LoadResult, Verdict
from qdeploy.bench.report import numbers

WORDS: dict[Verdict, str] = {"pass": "kept", "fail": "broken", "inconclusive": "undecided"}


@dataclass(frozen=True)
class Finding:
    """A verdict and what carries it, in words."""

    verdict: Verdict
    reason: str


def judge_load(load: LoadResult) -> Finding:
    """Whether a run shows that the objective is kept, with 99 % confidence; without an objective it is."""
    where = load_words(load)
    if reason := load.doubt:
        return Finding("inconclusive", f"the run {where} is {reason}. The same command makes it again")
    if load.slo is None:
        return Finding("pass", f"no limits were set {where}")
    words = ", ".join(map(_limit_words, load.slo.limits))
    found = Finding(load.slo.verdict, f"{where}: {words}")
    if found.verdict == "fail" or not (load.rate and saturated(load)):
        return found
    seen = numbers.number(completion_rate(load))
    return Finding(
        "inconclusive",
        f"{found.reason}, but only {seen} requests/s were completed: the queue would grow with time",
    )


def load_words(load: LoadResult) -> str:
    """Which run it is, e.g. "at 0.5 requests/s"."""
    if load.concurrency:
        return f"with {load.concurrency} requests at a time"
    return f"at {numbers.number(load.rate or load.achieved_rate)} requests/s"


def highest_rate(loads: Mapping[float, LoadResult]) -> Estimate | None:
    """The highest rate of those tried that keeps the objective, as in `Standing`; None if all break it.

    A rate that breaks the objective rules out those above it, whatever they showed.
    """
    found = {rate: judge_load(load).verdict for rate, load in loads.items()}
    broken = min((rate for rate, verdict in found.items() if verdict == "fail"), default=math.inf)
    open_rates = [rate for rate in found if rate < broken]
    if not open_rates:
        return None
    met = [rate for rate in open_rates if _met(loads[rate])]
    shown = [rate for rate in open_rates if found[rate] == "pass"]
    return Estimate(value=max(met, default=0.0), low=max(shown, default=0.0), high=max(open_rates))


def cost_at(rates: Estimate, loads: Mapping[float, LoadResult]) -> Estimate | None:
    """What a million output tokens cost at these rates; None where no rate is kept or no price is known."""
    low, value, high = (_cost(loads, rate) for rate in (rates.high, rates.value, rates.low))
    if value is None:
        return None
    return Estimate(
        value=value.per_million_output_tokens,
        low=low.per_million_output_tokens if low else None,
        high=high.per_million_output_tokens if high else None,
    )


def _cost(loads: Mapping[float, LoadResult], rate: float | None) -> Cost | None:
    return loads[rate].cost if rate else None


def _met(load: LoadResult) -> bool:
    return load.doubt is None and not saturated(load) and (load.slo is None or load.slo.met)


def _limit_words(limit: LimitResult) -> str:
    text = f"{limit.limit} {WORDS[limit.verdict]} ({limit.over} of {limit.requests} over)"
    if limit.verdict != "inconclusive":
        return text
    [asked] = parse_slo(limit.limit)
    needed = requests_needed(limit.over, limit.requests, asked.q)
    return f"{text}, about {needed:,} requests would decide" if needed else text
