"""`qdeploy import`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer


def import_gguf(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="The GGUF file.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to make; must be new or empty.", show_default=False)
    ],
    keep_codes: Annotated[
        bool,
        typer.Option(
            "--keep-codes",
            help="Keep the codes of quantized layers, where they are integers on a grid, and round nothing: "
            "makes a compressed-tensors folder.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on standard output.")] = False,
) -> None:
    """Turn a GGUF file into a model folder: bfloat16, or quantized as the file is.

    Weights are decoded to bfloat16; tokenizer, chat template and generation config come along. What the
    file's own quantization lost stays lost: start from the original model where you can get it. Tensors may
    be F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K or Q6_K. The whole model must fit in memory.

    With --keep-codes layers of Q4_0 become W4A16 and those of Q8_0 W8A16, in groups of 32, with the file's
    codes and scales: what they stand for is what the file says, to the last bit. Files with layers of other
    types are refused, Q4_1 unless all its minima are multiples of its scales. Embeddings and head are
    decoded, and the folder is float16, as the scales are.

    Needs the extra: pip install 'qdeploy\\[gguf]'.

    Examples:

        qdeploy import SmolLM2-135M-Instruct.Q4_1.gguf -o smollm2

        qdeploy import llama.Q4_0.gguf --keep-codes -o llama-q4

        qdeploy quantize smollm2 --scheme W4A16 --method gptq --group-size auto -o smollm2-w4
    """
    import json as jsonlib

    from qdeploy.gguf import import_gguf as decode
    from qdeploy.gguf_codes import import_codes
    from qdeploy.progress import console

    summary = (import_codes if keep_codes else decode)(file, output)
    if json:
        found = {"output": str(output), "architecture": summary.architecture, "tensors": summary.types}
        typer.echo(jsonlib.dumps(found | ({"kept": summary.kept} if keep_codes else {})))
        return
    stored = f"float16 beside {_told(summary.kept)} layers as they are" if keep_codes else "bfloat16"
    console.print(
        f"Wrote {output}: {summary.architecture}, {stored}, from {_told(summary.types)} tensors.",
        highlight=False,
    )


def _told(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(types.items()))
