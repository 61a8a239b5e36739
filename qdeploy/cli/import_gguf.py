"""`qdeploy import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_gguf(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="The GGUF file.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to make; must be new or empty.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on standard output.")] = False,
) -> None:
    """Turn a GGUF file into a bfloat16 model folder.

    Weights are decoded to bfloat16; tokenizer, chat template and generation config come along. What the
    file's own quantization lost stays lost: start from the original model where you can get it. Tensors may
    be F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K or Q6_K. The whole model must fit in memory.

    Needs the extra: pip install 'qdeploy\\[gguf]'.

    Examples:

        qdeploy import SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2

        qdeploy quantize smollm2 --scheme W4A16 --method gptq --group-size auto -o smollm2-w4
    """
    import json as jsonlib

    from qdeploy.gguf import import_gguf as run
    from qdeploy.progress import console

    summary = run(file, output)
    if json:
        typer.echo(
            jsonlib.dumps(
                {"output": str(output), "architecture": summary.architecture, "tensors": summary.types}
            )
        )
        return
    types = ", ".join(f"{count} {name}" for name, count in sorted(summary.types.items()))
    console.print(f"Wrote {output}: {summary.architecture}, bfloat16, from {types} tensors.", highlight=False)
