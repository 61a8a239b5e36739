"""`qdeploy sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdeploy.cli import recipe_options as options


def sample(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the 16-bit model.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to make: FILE.jsonl, one text a line.", show_default=False),
    ],
    samples: Annotated[int, typer.Option(help="Texts to write.", min=1)] = 96,
    length: Annotated[int, typer.Option(help="Tokens of each.", min=8)] = 512,
    seed: Annotated[int, typer.Option(help="Chooses the tokens.", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON on standard output.")] = False,
) -> None:
    """Let a model write text to calibrate on, from what it was trained on.

    Each text begins with a random token and goes on as the model would, at temperature 1. Mixed with text of
    your own, two shares to one, it keeps a quantized model from losing what your text does not show; see
    docs/calibration.md. Interrupted, the same command goes on.

    The whole model must fit in memory, in 16 bits. A model that does not can be served, and its texts saved
    in the same format: a line of {"text": "..."} for each.

    Examples:

        qdeploy sample ./llama -o own.jsonl

        qdeploy quantize ./llama --calibration mine.jsonl --calibration own.jsonl@2 -o llama-w4
    """
    options.let_idle_threads_sleep()
    import json as jsonlib

    from qdeploy.calibration.own_text import write_own_text
    from qdeploy.progress import console

    asked = write_own_text(model, output, samples=samples, length=length, seed=seed)
    if json:
        summary = {"output": str(output), "samples": samples, "length": length, "seed": seed}
        typer.echo(jsonlib.dumps({**summary, "model": asked.model}))
        return
    console.print(f"Wrote {output}: {samples} texts of {length} tokens.", highlight=False)
