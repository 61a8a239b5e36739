"""`qdeploy compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def compare(
    base: Annotated[Path, typer.Argument(help="The baseline's run folder, or a folder of its runs.")],
    candidates: Annotated[list[Path], typer.Argument(help="The candidates', likewise.", show_default=False)],
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="Fail where this holds, e.g. 'recovery_lcb<0.99'; repeatable. Without: the verdict decides.",
            show_default=False,
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the baseline's accuracy that may be lost.")
    ] = 0.01,
    inconclusive: Annotated[
        Literal["fail", "pass"],
        typer.Option(help="What an undecided gate does: fail with exit code 3, or pass with 0."),
    ] = "fail",
    markdown: Annotated[
        Path | None, typer.Option(help="Write tables for a pull request.", show_default=False)
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write JUnit XML, a test case a check.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures and checks as JSON.")] = False,
) -> None:
    """Compare runs of candidates with a baseline's; a gate for a pipeline.

    Reads what `qdeploy eval` and `qdeploy bench` left in their folders, joins items by their keys and
    measures nothing. Runs whose prompts, protocol, tokenizer, K or load differ are refused. With several load
    runs on each side, latencies are compared run by run. Every figure is defined in docs/metrics.md.

    The gate fails if a --fail-if holds for any candidate; without one, if accuracy is shown to be below the
    margin, by the mean over tasks or by any task (Holm). It is undecided where the items do not suffice, and
    then stays shut unless --inconclusive pass: the less is measured, the less there is to go by.

    Exit codes: 0 the gate holds, 1 it fails, 2 bad input, 3 it is undecided.

    Examples:

        qdeploy compare runs/base runs/w4a16

        qdeploy compare base w4 w8 --fail-if 'recovery_lcb<0.99' --fail-if 'p99_tpot_ms>50' --markdown pr.md

        qdeploy compare base w4 --fail-if 'recovery_lcb[arc_easy]<0.98' --fail-if 'kl_mean>0.1' --junit w4.xml
    """
    from rich.console import Console

    from qdeploy.bench.compare import compare_folders, decide, parse_condition, render
    from qdeploy.files import write_text

    conditions = [parse_condition(text) for text in fail_if or []]
    comparison = compare_folders(base, candidates, margin)
    outcome = decide(comparison, conditions, lenient=inconclusive == "pass")
    if markdown:
        write_text(markdown, render.markdown(comparison, outcome))
    if junit:
        write_text(junit, render.junit(outcome))
    if as_json:
        whole = {"comparison": comparison.model_dump(), "gate": outcome.model_dump()}
        typer.echo(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        Console().print(render.terminal(comparison, outcome))
    raise typer.Exit(outcome.exit_code)
