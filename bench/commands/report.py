"""`qdeploy report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Campaigns, runs, sweeps.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the path and the verdicts as JSON.")] = False,
) -> None:
    """Write one HTML page on what quantization cost and won.

    Reads what `qdeploy run`, `qdeploy eval`, `qdeploy bench` and `qdeploy verify` left in their folders and
    measures nothing. The page is one file that loads nothing from elsewhere: send it, print it, archive it.
    Every figure stands with its sample size and interval; a difference that is not significant is called so.
    Of a campaign the page says first which variant to deploy, as `qdeploy run` decided.

    Folders given one by one, of sweeps too, are joined by the checkpoint that they measured.

    Examples:

        qdeploy report campaign -o report.html

        qdeploy report runs/base-eval runs/w4-eval runs/base-bench runs/w4-bench runs/w4-sweep
    """
    from qdeploy.bench.report import write_report
    from qdeploy.bench.report.collect import collect
    from qdeploy.progress import console

    summaries, decisions = write_report(runs, output), collect(runs).decisions
    if as_json:
        verdicts = {s.name: {"verdict": s.verdict, "summary": [s.lead, *s.details]} for s in summaries}
        found = {"decisions": [decision.model_dump() for decision in decisions], "variants": verdicts}
        typer.echo(json.dumps({"report": str(output), **found}, indent=2, ensure_ascii=False))
        return
    for decision in decisions:
        console.print(decision.headline, highlight=False, markup=False)
    for summary in summaries:
        text = " ".join([f"{summary.name}: {summary.verdict_words}.", summary.lead, *summary.details])
        console.print(text, highlight=False, markup=False)
    console.print(f"Report: {output}", highlight=False)
