"""Figures of a comparison by name, for the conditions of a gate.

A name with the ending _lcb or _ucb is a bound of the figure's interval. For recovery these are the one-sided
95 % bounds that make the verdict; for all others, the ends of the 95 % interval.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from qdeploy.bench.compare.comparison import Candidate
from qdeploy.bench.compare.latency import LatencyChange
from qdeploy.bench.records import Estimate, TaskScore
from qdeploy.errors import ComparisonError, UsageError

OF_TASKS = {
    "accuracy": "the candidate's",
    "difference": "accuracy minus the baseline's",
    "recovery": "share of the baseline's accuracy that is left",
    "flips": "share of items whose correctness changed",
    "answer_changes": "share of items whose answer changed",
}
OF_TEXT = {
    "perplexity": "the candidate's",
    "perplexity_ratio": "over the baseline's",
    "kl_lower_bound": "divergence from the baseline, at least, nats a token",
    "same_top_token": "share of positions with the same most likely token",
}
OF_LOAD = {
    "request_throughput": "completed requests a second",
    "output_token_throughput": "output tokens a second",
    "failed": "requests",
}
LATENCY = re.compile(r"p(?P<percent>\d+(?:\.\d+)?)_(?P<metric>[a-z0-9_]+?_ms)(?P<ratio>_ratio)?")
ALIASES = {"kl_mean": "kl_lower_bound", "ppl": "perplexity", "ppl_ratio": "perplexity_ratio"}
EVERY = "*"

Values = dict[str, float | None]
"""Where (a task, a suite, or "") → the figure; None where it cannot be stated."""


def describe() -> str:
    """All names in a sentence, for help and errors."""
    return (
        f"of tasks {', '.join(OF_TASKS)} (append [TASK], [TASK:METRIC] or [*]); of a text "
        f"{', '.join(OF_TEXT)}; of load {', '.join(OF_LOAD)}, percentiles such as p99_tpot_ms, p50_ttft_ms "
        "and p95_e2e_sched_ms, and their ratio to the baseline's, p50_tpot_ms_ratio. Append _lcb or _ucb for "
        "the bounds of an interval"
    )


def is_known(name: str) -> bool:
    """Whether there is a figure of this name."""
    plain = _split(name)[0]
    return plain in OF_TASKS | OF_TEXT | OF_LOAD or LATENCY.fullmatch(plain) is not None


def is_of_load(name: str) -> bool:
    """Whether it is a figure of load runs."""
    plain = _split(name)[0]
    return plain in OF_LOAD or LATENCY.fullmatch(plain) is not None


def figures(candidate: Candidate, name: str, task: str | None) -> Values:
    """The figure called `name`; of tasks, the suite's or the only task's unless `task` says which.

    Raises:
        ComparisonError: the runs did not measure it.
        UsageError: `task` is given for what tasks do not have, or is not among them.
    """
    plain, bound = _split(name)
    if plain in OF_TASKS:
        scores = _scores(candidate, name, task)
        return {where: bound(_task_figure(score, plain, name)) for where, score in scores.items()}
    if task is not None:
        raise UsageError(f"{name}[{task}]: {plain} is no figure of tasks, so it takes no brackets.")
    if plain in OF_TEXT:
        fidelity = candidate.fidelity
        if fidelity is None or (estimate := getattr(fidelity, plain)) is None:
            raise ComparisonError(
                _missing(candidate, name, "evaluations with a text (`qdeploy eval --text`)")
            )
        return {"": bound(estimate)}
    if not candidate.loads:
        raise ComparisonError(_missing(candidate, name, "load runs (`qdeploy bench`)"))
    if plain in OF_LOAD:
        values = [float(getattr(load, plain)) for load in candidate.loads]
        return {"": max(values) if plain == "failed" else sum(values) / len(values)}
    return {"": bound(_latency_figure(candidate, plain))}


Bound = Callable[[Estimate | None], float | None]


def _split(name: str) -> tuple[str, Bound]:
    """The figure's own name, and which number of its estimate is meant."""
    ends: dict[str, Bound] = {
        "_lcb": lambda e: e.low if e else None,
        "_ucb": lambda e: e.high if e else None,
    }
    ending = name[-4:]
    plain = name[:-4] if ending in ends else name
    return ALIASES.get(plain, plain), ends.get(ending, lambda e: e.value if e else None)


def _task_figure(score: TaskScore, plain: str, name: str) -> Estimate | None:
    if plain == "recovery" and name != plain:
        return score.recovery_bounds
    found: Estimate | None = getattr(score, plain)
    return found


def _scores(candidate: Candidate, name: str, task: str | None) -> dict[str, TaskScore]:
    tasks = candidate.whole_tasks
    if not tasks:
        raise ComparisonError(_missing(candidate, name, "evaluations with the same tasks"))
    if task == EVERY:
        return {f"{score.task}:{score.metric}": score for score in tasks}
    if task is not None:
        found = [score for score in candidate.tasks if task in (score.task, f"{score.task}:{score.metric}")]
        if not found:
            known = ", ".join(dict.fromkeys(score.task for score in tasks))
            raise UsageError(f"{name}[{task}]: {candidate.name} has no such task. It has {known}.")
        return {task: found[0]}
    if candidate.suite:
        return {"suite": candidate.suite}
    if len({score.task for score in tasks}) > 1:
        raise ComparisonError(
            f"{name}: the tasks of {candidate.name} were sampled to different shares, so there is no suite. "
            f"Ask for {name}[*] or for one task."
        )
    return {tasks[0].task: tasks[0]}


def _latency_figure(candidate: Candidate, plain: str) -> Estimate | None:
    found = LATENCY.fullmatch(plain)
    assert found is not None
    q, metric = float(found["percent"]) / 100, found["metric"]
    for change in candidate.latencies:
        if change.metric == metric and abs(change.q - q) < 1e-9:
            return change.ratio if found["ratio"] else _alone(change)
    known = sorted({f"p{c.q * 100:g}_{c.metric}" for c in candidate.latencies})
    raise ComparisonError(f"{plain}: {candidate.name} has no such percentile. It has {', '.join(known)}.")


def _alone(change: LatencyChange) -> Estimate | None:
    return None if change.value is None else Estimate(value=change.value)


def _missing(candidate: Candidate, name: str, what: str) -> str:
    return f"{name}: not measured for {candidate.name}. It needs {what} of the baseline and of the candidate."
