"""A campaign from plan to report."""

from __future__ import annotations

from pathlib import Path

from qdeploy import catalogue
from qdeploy.bench.accuracy.tasks import load_tasks
from qdeploy.bench.campaign.state import State, load_state
from qdeploy.bench.campaign.steps import Steps
from qdeploy.bench.campaign.variant import Line
from qdeploy.bench.decision.decide import decide
from qdeploy.bench.plan import load_plan
from qdeploy.bench.records import DECISION
from qdeploy.bench.report import write_report
from qdeploy.checkpoint.lock import FolderLock
from qdeploy.errors import disk_errors
from qdeploy.modeling.hub import resolve_model

REPORT = "report.html"


def run_campaign(plan_file: Path, folder: Path) -> Path:
    """Do what the plan says and is not done yet, baseline first; returns the report's path.

    One variant is served at a time, and its load run has the machine to itself: accuracy and fidelity
    requests come after it.

    Raises:
        RecipeError: the plan is not valid.
        UsageError: the plan names an unknown task.
        OutputError: `folder` is something else's, or another campaign is running in it.
        StepError: a step failed; what is done stays, and the same call goes on from there.
        Interrupted: Ctrl-C.
    """
    plan = load_plan(plan_file)
    model = resolve_model(plan.model)
    if plan.eval:
        wanted = plan.eval
        load_tasks(
            wanted.tasks,
            wanted.limit,
            of_suite=wanted.suite,
            shots=wanted.num_fewshot,
            data_dir=wanted.data_dir,
        )
    state = load_state(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
    try:
        fresh = State(plan_text=plan_file.read_text(encoding="utf-8"), plan=plan.model_dump(mode="json"))
        names = ["baseline", *(variant.name for variant in plan.variants)]
        fresh.variants = [v for v in (state.variants if state else []) if v.name in names]
        (folder / DECISION).unlink(missing_ok=True)
        steps = Steps(folder, fresh)
        for variant in (None, *plan.variants):
            Line(plan, model, steps, variant).run()
        decide(folder, plan).save(folder)
        write_report([folder], folder / REPORT)
        catalogue.record(folder)
    finally:
        lock.release()
    return folder / REPORT
