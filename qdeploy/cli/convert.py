"""`qdeploy convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MEGABYTE = 1_000_000


def convert(
    source: Annotated[Path, typer.Argument(help="The quantized checkpoint folder.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="Format: compressed-tensors, gptq, gptq_v2, awq, modelopt or fp8.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to make; must be new or empty.", show_default=False)
    ],
    allow_scale_rounding: Annotated[
        bool,
        typer.Option(
            "--allow-scale-rounding",
            help="Go on where scales are not exact in the format's 16 bits; says how many were rounded.",
        ),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Files to work on at a time. Each may take as much memory as two of them; the result is the "
            "same for any number.",
        ),
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on standard output.")] = False,
) -> None:
    """Store a quantized checkpoint in another format, with the same codes, zero points and scales.

    Nothing is quantized again: what the weights stand for stays the same to the last bit. What a format
    cannot hold is refused with the reason, and with formats that can, before anything is written. Reads
    checkpoints of qdeploy, llm-compressor, AutoGPTQ, GPTQModel, AutoAWQ and ModelOpt, and those in FP8 that
    DeepSeek and Qwen publish.

    Weight files in which nothing changes become hard links (copies on another file system). The folder gets
    README.md, a model card, and SHA256SUMS for sha256sum -c.

    compressed-tensors is what qdeploy quantize writes. gptq and gptq_v2 differ in how they store zero points:
    gptq is known to all readers, and cannot hold some asymmetric layers. vLLM 0.32 takes of both symmetric
    layers of 4 and 8 bits alone, and awq with any zero points. fp8 has one scale for a layer (FP8) or for
    128 × 128 weights (FP8_BLOCK).

    Examples:

        qdeploy convert smollm2-w4 --to gptq -o smollm2-gptq

        qdeploy convert ./llama-awq --to compressed-tensors -o llama-ct
    """
    import json as jsonlib
    from dataclasses import asdict

    from qdeploy.conversion import convert as run
    from qdeploy.progress import console

    done = run(source, output, to, round_scales=allow_scale_rounding, jobs=jobs)
    if json:
        typer.echo(jsonlib.dumps({"output": str(output), **asdict(done)}))
        return
    rounded = f", {done.rounded_scales} scales rounded" if done.rounded_scales else ""
    console.print(
        f"Wrote {output}: {done.layers} layers from {done.source} to {done.target}{rounded}, "
        f"{done.bytes / MEGABYTE:.1f} MB.",
        highlight=False,
    )
