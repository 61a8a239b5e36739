"""The command `qdeploy export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qdeploy.exporters.base import ExportReport

MEGABYTE = 1_000_000


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder that `qdeploy quantize` wrote, or a 16-bit model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make; must be new or empty.")],
    engine: Annotated[str, typer.Option(help="Engine to export for: vllm or tensorrt-llm.")] = "vllm",
    gpu: Annotated[
        str,
        typer.Option(
            help="Device to check for: h100, h200, b200, a100, l40s, l4, a10, t4, rtx4090, cpu-avx512, "
            "cpu-avx2, cpu for this machine's CPU, or auto for its GPU or else CPU."
        ),
    ] = "auto",
    tensor_parallel: Annotated[int, typer.Option(help="Devices that the model is split over.")] = 1,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            help="Take layers that the engine has no kernel for, dequantized to 16 bits: for studies of "
            "accuracy, since speed and size are then those of the 16-bit model.",
        ),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on standard output.")
    ] = False,
) -> None:
    """Check a checkpoint for an engine and make a folder to serve.

    Makes the checks of the engine's own loader before anyone waits for it:
    tensors, dtypes, shapes, scales, fused layers, the split over devices,
    and whether the device has a kernel for every layer. Says which kernel
    to expect. An error means that nothing is written.

    The folder holds the model's weights as hard links (copies on another
    file system), serve.sh, compose.yaml, engine_args.json for
    `qdeploy serve`, export.json with the report, README.md, a model card,
    and SHA256SUMS for `sha256sum -c`.

    Examples:

        qdeploy export OUT -o DEPLOY

        qdeploy export OUT -o DEPLOY --gpu h100 --tensor-parallel 2
    """
    import json as jsonlib

    from qdeploy import registry

    exporter = registry.load("exporters", engine)()
    report: ExportReport = exporter.export(
        checkpoint, output, gpu=gpu, tensor_parallel=tensor_parallel, reference=reference
    )
    if json:
        typer.echo(jsonlib.dumps(report.to_dict(), indent=2))
    else:
        _show(report)


def _show(report: ExportReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from qdeploy.progress import console

    devices = f" × {report.tensor_parallel}" if report.tensor_parallel > 1 else ""
    table = Table.grid(padding=(0, 2))
    rows = {
        "Target": f"{report.engine} {report.engine_version} on {report.target}{devices}",
        "Scheme": f"{report.scheme} ({report.quantized_layers} quantized layers)",
        "Kernel, expected": report.kernel or "none: 16-bit layers",
        "Weights": f"{report.weight_bytes / MEGABYTE:,.1f} MB",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)
    colours = {"warning": "yellow", "info": "blue", "error": "red"}
    for finding in report.findings:
        colour = colours[finding.severity]
        console.print(
            f"[{colour}]{finding.severity}[/] {escape(str(finding))}", highlight=False, soft_wrap=True
        )
    start = f"qdeploy serve {report.output}" if report.engine == "vllm" else f"{report.output}/serve.sh"
    console.print(f"Wrote {escape(report.output)}. Start it: {escape(start)}", soft_wrap=True)
