"""`qdeploy run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qdeploy.bench.commands.mlflow_option import MLFLOW, open_tracker


def run(
    plan: Annotated[Path, typer.Argument(help="Plan file, YAML.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Campaign folder; default: the plan's name.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report's path and figures as JSON.")
    ] = False,
    mlflow: Annotated[str | None, typer.Option(help=MLFLOW)] = None,
) -> None:
    """Do the whole line, quantize to report, for several variants; say which to deploy.

    The 16-bit model is the baseline and comes first. Each variant is quantized, exported and served alone;
    the load run comes before any other request, accuracy and fidelity after it. The campaign folder keeps the
    checkpoints, the run folders, the engine's logs, decision.json and report.html.

    The answer comes first: which variant to deploy under the objective (`slo` of the load, and accuracy or
    conditions of `qdeploy compare`), and why not the others. What is invalid, undecided or was not measured
    is never recommended (docs/decision.md).

    What is done stays done: the same command goes on after Ctrl-C or a failure, and redoes only what a change
    of the plan touches.

    A plan:

        \b
        model: path/to/model
        engine: {name: vllm, device: auto}
        calibration: {source: builtin, samples: 64, sequence_length: 512}
        variants:
          - {name: w4a16-gptq, scheme: W4A16, method: gptq, group_size: auto}
        load: {rate: 2, requests: 60, prompt_tokens: 128, output_tokens: 32, slo: "p90_ttft=500ms"}
        eval: {text: builtin, windows: 12, window_tokens: 512, tasks: [smoke]}
        verify: true
        objective: {optimize: rate, rates: [4, 8], fail_if: ["recovery_lcb<0.97"]}

    Examples:

        qdeploy run plan.yaml

        qdeploy run plan.yaml -o campaigns/first --json
    """
    from rich.console import Console

    from qdeploy.bench.campaign import run_campaign
    from qdeploy.bench.campaign.summary import decision_summary, summary_rows, summary_table
    from qdeploy.bench.report.collect import collect

    folder, tracker = output or Path(plan.stem), open_tracker(mlflow)
    report = run_campaign(plan, folder)
    evidence = collect([folder])
    [decision], rows = evidence.decisions, summary_rows(evidence)
    if tracker:
        tracker.log_campaign(folder, decision)
    if as_json:
        found = {"report": str(report), "decision": decision.model_dump(), "variants": rows}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    Console().print(decision_summary(decision))
    Console().print(summary_table(rows))
    typer.echo(f"Report: {report}")
