"""The decision of a campaign, from its plan and its folder."""

from __future__ import annotations

from pathlib import Path

from qdeploy.bench.decision.choice import choose
from qdeploy.bench.decision.standing import Asked, standing
from qdeploy.bench.decision.words import objective_words
from qdeploy.bench.plan import BASELINE, Plan
from qdeploy.bench.records import Decision
from qdeploy.bench.report.collect import collect


def decide(folder: Path, plan: Plan) -> Decision:
    """Judge every variant in the campaign's folder and choose.

    Raises:
        ComparisonError: nothing was measured yet.
    """
    margin = plan.eval.margin if plan.eval else 0.0
    asked = Asked(plan.objective, plan.optimum, margin, loaded=plan.load is not None)
    variants = folder / "variants"
    found = [
        standing(variant, variants / variant.name, variants / BASELINE, asked)
        for variant in collect([folder]).variants
    ]
    return choose(found, plan.optimum, objective_words(plan))
