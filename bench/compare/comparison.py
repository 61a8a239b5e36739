"""Two sides joined on items, tokens and load: every figure is computed again from what the runs left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from qdeploy.bench.accuracy.comparison import compare, pairs_of, suite_score
from qdeploy.bench.accuracy.table import read_items
from qdeploy.bench.compare.latency import LatencyChange, latency_changes
from qdeploy.bench.compare.refusals import check_same_items, check_same_load, check_same_questions
from qdeploy.bench.compare.sides import Run, Side, read_side
from qdeploy.bench.fidelity.figures import compare_tables
from qdeploy.bench.fidelity.token_table import read_tokens
from qdeploy.bench.noise import under_floor, with_floor
from qdeploy.bench.records import Fidelity, LoadResult, Noise, Record, TaskScore, Verdict
from qdeploy.bench.report.compare import overall
from qdeploy.errors import ComparisonError

HARDWARE = ("cpu", "gpu", "cores")


class Candidate(Record):
    """One candidate against the baseline; what either was not measured on is empty or None."""

    name: str
    folder: str
    verdict: Verdict | None = None
    suite: TaskScore | None = None
    tasks: list[TaskScore] = Field(default_factory=list)
    fidelity: Fidelity | None = None
    loads: list[LoadResult] = Field(default_factory=list)
    latencies: list[LatencyChange] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @property
    def whole_tasks(self) -> list[TaskScore]:
        """The tasks without their parts."""
        return [task for task in self.tasks if task.part_of is None]


class Comparison(Record):
    """All candidates against one baseline; `noise` is the baseline's against itself."""

    baseline: str
    margin: float
    noise: Noise | None = None
    candidates: list[Candidate]


def compare_folders(base: Path, candidates: Sequence[Path], margin: float) -> Comparison:
    """Compare run folders, or folders of runs, with the baseline's.

    Args:
        margin: share of the baseline's accuracy that may be lost.

    Raises:
        ComparisonError: a folder holds no run; two runs differ in prompts, protocol, tokenizer, K or load.
    """
    side = read_side(base)
    return Comparison(
        baseline=side.name,
        margin=margin,
        noise=side.evaluation.record.noise if side.evaluation else None,
        candidates=[_compare(side, read_side(folder), margin) for folder in candidates],
    )


def _compare(base: Side, other: Side, margin: float) -> Candidate:
    found = Candidate(name=other.name, folder=str(other.folder))
    if base.evaluation and other.evaluation:
        found = found.model_copy(update=_evaluation(base.evaluation, other.evaluation, margin))
    if base.loads and other.loads:
        found = found.model_copy(update=_load(base.loads, other.loads))
    if not found.tasks and not found.fidelity and not found.loads:
        raise ComparisonError(
            f"{base.folder} and {other.folder} have nothing in common: compare evaluations that scored the "
            "same tasks or text, or load runs."
        )
    return found.model_copy(update={"notes": found.notes + _notes(base, other)})


def _evaluation(base: Run, other: Run, margin: float) -> dict[str, object]:
    check_same_questions(base, other)
    tasks, suite = _tasks(base, other, margin)
    return {
        "tasks": tasks,
        "suite": suite,
        "verdict": overall(tasks, suite),
        "fidelity": _fidelity(base, other),
    }


def _tasks(base: Run, other: Run, margin: float) -> tuple[list[TaskScore], TaskScore | None]:
    theirs, ours = ({(s.task, s.doc_id): s for s in read_items(run.folder)} for run in (base, other))
    if not theirs or not ours:
        return [], None
    check_same_items(base, other, theirs, ours)
    scores = []
    for known in other.record.tasks:
        fresh = {"margin": None if known.part_of else margin, "noise_difference": None, "noise_flips": None}
        scores.append(compare(known.model_copy(update=fresh), pairs_of(known, ours.values(), theirs)))
    noise, suite = base.record.noise, suite_score(scores, list(ours.values()), theirs, margin)
    return with_floor(scores, noise), under_floor(suite, noise)


def _fidelity(base: Run, other: Run) -> Fidelity | None:
    if base.record.fidelity is None or other.record.fidelity is None:
        return None
    return compare_tables(other.record.fidelity, read_tokens(other.folder), read_tokens(base.folder))


def _load(base: Sequence[Run], other: Sequence[Run]) -> dict[str, object]:
    for run in (*base[1:], *other):
        check_same_load(base[0], run)
    theirs, ours = ([run.record.load for run in runs if run.record.load] for runs in (base, other))
    return {"loads": ours, "latencies": latency_changes(theirs, ours)}


def _notes(base: Side, other: Side) -> list[str]:
    """What a reader should know before trusting the figures."""
    notes = []
    for side in (base, other):
        reasons = (reason for run in side.loads if run.record.load for reason in run.record.load.invalid)
        notes += [f"{side.name}: a load run is invalid: {reason}." for reason in dict.fromkeys(reasons)]
    if base.loads and other.loads:
        machines = [
            [run.record.provenance.get(key) for key in HARDWARE] for run in (base.loads[0], other.loads[0])
        ]
        if machines[0] != machines[1]:
            notes.append(f"{other.name}: latencies were measured on another machine than the baseline's.")
    return notes
