"""`qdeploy verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def verify(
    folder: Annotated[Path, typer.Argument(help="Folder that `qdeploy export` wrote, or any checkpoint.")],
    tokens: Annotated[int, typer.Option(help="Tokens to score, in windows of 128.", min=128)] = 1024,
    url: Annotated[
        str | None,
        typer.Option(help="The folder is served here already; otherwise vLLM is started for it."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder for the record and the engine's log.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the run record as JSON.")] = False,
) -> None:
    """Prove that the served model computes what its checkpoint says.

    First the files: every quantized layer must decode to the numbers that
    `qdeploy quantize` recorded, and every weight file must have its
    recorded hash. Then the server: a fixed text is scored through HTTP and
    by the dequantized model in this process. Log-probabilities may differ
    by no more than twice what the same model differs from float32 when it
    runs here in the engine's own number type (see docs/verify.md).

    Ends with exit code 1 if the served model is not the checkpoint. Names
    the layers that changed or, where the files are sound, searches up to
    ten minutes for layers whose misreading would explain what was served.
    Needs memory for the model in float32. The key of a server given with
    --url is read from QDEPLOY_API_KEY or OPENAI_API_KEY.

    Examples:

        qdeploy verify DEPLOY

        qdeploy verify DEPLOY --url http://127.0.0.1:8000/v1 -o runs/verify
    """
    from qdeploy.bench.verify import verify as run

    record = run(folder, tokens=tokens, url=url, output=output)
    if json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        _show(record.verify or {}, record.engine.kernel)


def _show(facts: dict[str, Any], kernel: str | None) -> None:
    from qdeploy.progress import console

    layers, files = facts["layers_checked"], facts["files_checked"]
    exact = (
        f"{layers} layers and {files} files are as quantized"
        if files
        else "no manifest to check files against"
    )
    console.print(f"[bold green]Verified.[/] {exact}.", highlight=False)
    console.print(
        f"Served log-probabilities of {facts['positions']} tokens differ from the checkpoint's by "
        f"{facts['served_rms']:.4f} nats (RMS), {facts['ratio']:.2f} times what {facts['dtype']} explains "
        f"(limit {facts['limit']:g}). Kernel: {kernel or 'none'}.",
        highlight=False,
        soft_wrap=True,
    )
