"""The command `qdeploy lint`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.exporters import options

if TYPE_CHECKING:
    from qdeploy.exporters.base import Finding

COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}
FOUND_ERRORS = 1
"""Exit code."""


def _explain(code: str | None) -> None:
    """Print a rule's page and leave."""
    if code is None:
        return
    from qdeploy.errors import UnknownNameError
    from qdeploy.exporters.lint.pages import page
    from qdeploy.exporters.lint.rule import RULES

    if code.upper() not in RULES:
        raise UnknownNameError("rule", code, sorted(RULES))
    typer.echo(page(RULES[code.upper()]), nl=False)
    raise typer.Exit


def lint(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint folder, whoever made it.")],
    engine: Annotated[
        str | None, typer.Option(help="Ask its loader and kernels too: vllm or tensorrt-llm.")
    ] = None,
    gpu: Annotated[
        str, typer.Option("--gpu", "--device", help="Device to ask for, as for qdeploy export.")
    ] = "auto",
    tensor_parallel: options.TensorParallel = 1,
    deep: Annotated[bool, typer.Option("--deep", help="Read scales, and decode every layer.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="The 16-bit model, to compare decoded weights with.")
    ] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write the findings here, as SARIF 2.1.0.")] = None,
    json: options.Json = False,
    explain: Annotated[
        str | None,
        typer.Option(callback=_explain, is_eager=True, metavar="CODE", help="Print a rule's page and exit."),
    ] = None,
) -> None:
    """Find what is wrong with a checkpoint.

    Knows compressed-tensors, GPTQ, AWQ, ModelOpt and fp8 folders, and models
    in 16 bits, by any tool. Reads headers and configs; with --deep scales and
    codes; with --against it compares decoded weights with the original's.
    The exit code is 1 if there is an error.

    Examples:

        qdeploy lint ./llama-awq --deep

        qdeploy lint ./llama-awq --engine vllm --gpu cpu

        qdeploy lint --explain QD205
    """
    from qdeploy import registry
    from qdeploy.exporters.lint.linter import lint, sound
    from qdeploy.exporters.targets import find_target
    from qdeploy.modeling.checkpoint import CheckpointReader

    target = find_target(gpu, tensor_parallel)
    found = lint(
        checkpoint,
        deep=deep,
        original=CheckpointReader(against) if against else None,
        engine=registry.load("exporters", engine)() if engine else None,
        target=target,
        tensor_parallel=tensor_parallel,
    )
    if sarif is not None:
        _write_sarif(sarif, checkpoint, found)
    if json:
        _print_json(checkpoint, found)
    else:
        _show(checkpoint, found)
    if not sound(found):
        raise typer.Exit(FOUND_ERRORS)


def _write_sarif(file: Path, checkpoint: Path, found: list[Finding]) -> None:
    from qdeploy.errors import disk_errors
    from qdeploy.exporters.lint.sarif import sarif
    from qdeploy.files import write_json

    with disk_errors(file):
        write_json(file, sarif(checkpoint, found))


def _print_json(checkpoint: Path, found: list[Finding]) -> None:
    import json
    from dataclasses import asdict

    content: dict[str, Any] = {"folder": str(checkpoint), "findings": [asdict(finding) for finding in found]}
    typer.echo(json.dumps(content, indent=2))


def _show(checkpoint: Path, found: list[Finding]) -> None:
    """The first finding of each rule, and how many there are; --json has them all."""
    from collections import Counter

    from rich.markup import escape

    from qdeploy.progress import console

    first: dict[str, Finding] = {}
    for finding in found:
        first.setdefault(finding.code, finding)
    count = Counter(finding.code for finding in found)
    for finding in first.values():
        colour = COLOURS[finding.severity]
        others = f" (and {count[finding.code] - 1} more of {finding.code})" if count[finding.code] > 1 else ""
        console.print(
            f"{finding.code} [{colour}]{finding.severity}[/] {escape(str(finding))}{others}",
            highlight=False,
            soft_wrap=True,
        )
    counts = Counter(finding.severity for finding in found)
    told = ", ".join(
        f"{counts[level]} {level}{'s' if counts[level] > 1 else ''}"
        for level in ("error", "warning")
        if counts[level]
    )
    console.print(f"{escape(str(checkpoint))}: {told or 'nothing found'}", highlight=False, soft_wrap=True)
