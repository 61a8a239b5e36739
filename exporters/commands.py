"""The command `qdeploy export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.exporters import options

if TYPE_CHECKING:
    from qdeploy.exporters.base import Exporter, ExportReport, Memory

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
            "cpu-avx2, cpu for this machine's CPU, or auto for its GPU or else CPU. a100 and h100 have 80 GB."
        ),
    ] = "auto",
    tensor_parallel: options.TensorParallel = 1,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Of TensorRT-LLM: pytorch, the default, or tensorrt for its engine builder, up to 1.2.x."
        ),
    ] = None,
    pipeline_parallel: options.PipelineParallel = 1,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            help="Take layers that the engine has no kernel for, dequantized to 16 bits: for studies of "
            "accuracy, since speed and size are then those of the 16-bit model.",
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Check a checkpoint for an engine and make a folder to serve.

    Makes the checks of the engine's own loader before anyone waits for it:
    tensors, dtypes, shapes, scales, fused layers, the split over devices,
    whether the device has a kernel for every layer, and whether the model
    fits into its memory. Says which kernel to expect, and how many sequences
    the cache has room for, by an estimate of what the engine takes beside it.
    An error means that nothing is written.

    The folder holds the model's weights as hard links (copies on another
    file system), export.json with the report, README.md, a model card,
    SHA256SUMS for `sha256sum -c`, and what starts the engine: serve.sh for
    one that is installed, compose.yaml for its container, kubernetes.yaml
    for a cluster (which says what to change in it first), engine_args.json
    for `qdeploy serve`, llm_args.yaml for trtllm-serve.

    Sequences are as long as the model's own unless the cache has no room for
    one: then the launch files have --max-model-len (TensorRT-LLM:
    --max_seq_len), and the report says so.

    Examples:

        qdeploy export OUT -o DEPLOY

        qdeploy export OUT -o DEPLOY --gpu h100 --tensor-parallel 2

        qdeploy export OUT -o DEPLOY --engine tensorrt-llm --gpu h100
        qdeploy export OUT -o DEPLOY --gpu h100 --engine tensorrt-llm --backend tensorrt
    """
    import json as jsonlib

    from qdeploy import registry

    exporter = _chosen(registry.load("exporters", engine)(), backend, pipeline_parallel)
    report: ExportReport = exporter.export(
        checkpoint, output, gpu=gpu, tensor_parallel=tensor_parallel, reference=reference
    )
    if json:
        typer.echo(jsonlib.dumps(report.to_dict(), indent=2))
    else:
        _show(report)


def _memory_rows(memory: Memory | None) -> dict[str, str]:
    from qdeploy.exporters.fitting import gib

    if memory is None:
        return {}
    rows = {}
    if memory.device_bytes is not None:
        taken = (
            f"{gib(memory.weight_bytes)} weights + {gib(memory.overhead_bytes_estimated)} engine (estimate)"
        )
        rows["Each device"] = f"{taken} + {gib(memory.cache_bytes)} cache, of {gib(memory.device_bytes)}"
    if memory.sequences is not None:
        rows["Cache holds"] = (
            f"{memory.cache_tokens:,} tokens: {memory.sequences:,} sequences of {memory.max_model_len:,}"
        )
    return rows


def _chosen(exporter: Exporter, backend: str | None, pipeline_parallel: int) -> Exporter:
    from qdeploy.errors import UsageError
    from qdeploy.exporters.base import HasBackends

    if backend is None and pipeline_parallel == 1:
        return exporter
    if not isinstance(exporter, HasBackends):
        raise UsageError(
            f"--engine {exporter.name} takes neither --backend nor --pipeline-parallel, only "
            "--tensor-parallel. Leave them out, or use --engine tensorrt-llm."
        )
    return exporter.on(backend or exporter.backends[0], pipeline_parallel)


def _show(report: ExportReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from qdeploy.progress import console

    count = report.tensor_parallel * report.pipeline_parallel
    devices = f" × {count}" if count > 1 else ""
    table = Table.grid(padding=(0, 2))
    rows = {
        "Target": f"{report.engine} {report.engine_version} on {report.target}{devices}",
        "Scheme": f"{report.scheme} ({report.quantized_layers} quantized layers)",
        "Kernel, expected": report.kernel or "none: 16-bit layers",
        "Weights": f"{report.weight_bytes / MEGABYTE:,.1f} MB",
        **_memory_rows(report.memory),
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
    output = Path(report.output)
    if (output / "build.sh").exists():
        console.print(f"Build its engine on the GPU first: {escape(str(output))}/build.sh", soft_wrap=True)
    start = f"qdeploy serve {output}" if report.engine == "vllm" else f"{output}/serve.sh"
    console.print(f"Wrote {escape(str(output))}. Start it: {escape(start)}", soft_wrap=True)
