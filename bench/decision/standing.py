"""What one variant of a campaign has to show for itself: its accuracy, its service, its figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qdeploy.bench.compare import compare_folders, figures
from qdeploy.bench.compare.gate import checks
from qdeploy.bench.decision.objective import Objective
from qdeploy.bench.decision.service import Finding, cost_at, highest_rate, judge_load
from qdeploy.bench.records import Estimate, LoadResult, Optimum, Standing, Verdict, load_record
from qdeploy.bench.report.collect import Variant
from qdeploy.errors import QDeployError

RATES = "rates"
"""Folder with a run for each rate that was tried besides the plan's own."""

WORST_FIRST: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
VERIFIED = {"pass": "computes what its checkpoint says", "fail": "does not compute what its checkpoint says"}


@dataclass(frozen=True)
class Asked:
    """An objective with what it leaves open.

    Attributes:
        margin: share of the baseline's accuracy that may be lost.
        loaded: a load is part of it.
    """

    objective: Objective
    optimize: Optimum
    margin: float
    loaded: bool


def standing(variant: Variant, folder: Path, baseline: Path, asked: Asked) -> Standing:
    """Judge one variant by what its runs left.

    Args:
        folder: of its runs.
        baseline: of the baseline's; the same where it is the baseline that is judged.
    """
    loads = loads_by_rate(folder)
    found = [
        *_accuracy(variant, folder, baseline, asked),
        *(_service(variant) if asked.loaded else []),
        *_verification(variant),
    ]
    verdicts = [finding.verdict for finding in found]
    verdict = next(verdict for verdict in WORST_FIRST if verdict in verdicts)
    weight_bytes = variant.checkpoint.weight_bytes if variant.checkpoint else None
    return Standing(
        name=variant.name,
        verdict=verdict,
        reasons=[finding.reason for finding in found if finding.verdict == verdict],
        figure=_figure(asked.optimize, loads, weight_bytes),
        weight_bytes=weight_bytes,
    )


def loads_by_rate(folder: Path) -> dict[float, LoadResult]:
    """The open-loop runs by their rate in requests/s: at the plan's own, and at those tried besides."""
    runs = [*folder.glob("bench/run.json"), *folder.glob(f"{RATES}/*/run.json")]
    loads = [load_record(path.parent).load for path in runs]
    return {load.rate: load for load in loads if load and load.rate}


def _accuracy(variant: Variant, folder: Path, baseline: Path, asked: Asked) -> list[Finding]:
    conditions = asked.objective.conditions
    if variant.is_baseline:
        conditions = [condition for condition in conditions if figures.is_of_load(condition.figure)]
        if not conditions:
            return [Finding("pass", "is the baseline, of which nothing is lost")]
    try:
        comparison = compare_folders(baseline, [folder], asked.margin)
        found = checks(comparison.candidates[0], asked.margin, conditions)
    except QDeployError as error:
        return [Finding("inconclusive", f"not compared with the baseline: {str(error).rstrip('.')}")]
    what = "fail if " if conditions else ""
    return [Finding(check.verdict, f"{what}{check.name}: {check.message}") for check in found]


def _service(variant: Variant) -> list[Finding]:
    load = variant.bench.load if variant.bench else None
    if load is None:
        return [Finding("inconclusive", "no load run was made")]
    return [judge_load(load)]


def _verification(variant: Variant) -> list[Finding]:
    found = variant.verify.verify if variant.verify else None
    if not found or found.get("verdict") not in VERIFIED:
        return []
    return [Finding(found["verdict"], f"the served model {VERIFIED[found['verdict']]}")]


def _figure(
    optimize: Optimum, loads: Mapping[float, LoadResult], weight_bytes: int | None
) -> Estimate | None:
    if optimize == "size":
        return None if weight_bytes is None else Estimate(value=weight_bytes)
    rates = highest_rate(loads)
    return rates if optimize == "rate" or rates is None else cost_at(rates, loads)
