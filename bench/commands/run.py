"""`qdeploy run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def run(
    plan: Annotated[Path, typer.Argument(help="Plan file, YAML.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Campaign folder; default: the plan's name.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report's path and figures as JSON.")
    ] = False,
) -> None:
    """Do the whole line, quantize to report, for several variants.

    The 16-bit model is the baseline and comes first. Each variant is quantized, exported and served alone;
    the load run comes before any other request, accuracy and fidelity after it. The campaign folder keeps the
    checkpoints, the run folders, the engine's logs and report.html.

    What is done stays done: the same command goes on after Ctrl-C or a failure, and redoes only what a change
    of the plan touches.

    A plan:

        \b
        model: path/to/model
        engine: {name: vllm, device: auto}
        calibration: {source: builtin, samples: 64, sequence_length: 512}
        variants:
          - {name: w4a16-gptq, scheme: W4A16, method: gptq, group_size: auto}
        load: {rate: 2, requests: 60, prompt_tokens: 128, output_tokens: 32}
        eval: {text: builtin, windows: 12, window_tokens: 512, tasks: [smoke]}
        verify: true

    Examples:

        qdeploy run plan.yaml

        qdeploy run plan.yaml -o campaigns/first --json
    """
    from rich.console import Console

    from qdeploy.bench.campaign import run_campaign
    from qdeploy.bench.campaign.summary import summary_rows, summary_table
    from qdeploy.bench.report.collect import collect

    folder = output or Path(plan.stem)
    report = run_campaign(plan, folder)
    rows = summary_rows(collect([folder]))
    if as_json:
        typer.echo(json.dumps({"report": str(report), "variants": rows}, indent=2, ensure_ascii=False))
        return
    Console().print(summary_table(rows))
    typer.echo(f"Report: {report}")
