"""`qdeploy quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli import recipe_options as options

if TYPE_CHECKING:
    from rich.table import Table

MEGABYTE = 1_000_000
SERVING = {
    "native": "as it is by {engines}: qdeploy export {output} --engine vllm -o DEPLOY",
    "converted": "once converted by qdeploy export",
    "reference": "nowhere as it is: no engine has a kernel; for accuracy studies only",
}
"""manifest's `serving` → words."""


@options.with_recipe
def quantize(
    asked: options.Asked,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make; must be new or empty.")],
    activation_memory: options.ActivationMemory = None,
    device_memory: options.DeviceMemory = None,
    force: Annotated[
        bool, typer.Option("--force", help="Try it even if memory or disk cannot hold it.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin again instead of resuming an interrupted run.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the manifest as JSON on standard output.")
    ] = False,
) -> None:
    """Quantize a model into a checkpoint that engines load as it is.

    The model is read, quantized and written one block at a time, so that it need not fit in memory. Each
    block is calibrated on what the quantized blocks before it put out. Embeddings, norms and the output head
    stay in 16 bit. The folder holds compressed-tensors safetensors, the tokenizer and chat template, and
    qdeploy.json: versions, recipe, calibration data, and the error of every layer.

    What cannot fit into memory or on the disk is refused before it begins; qdeploy plan prints what a run
    needs.

    A run that was interrupted goes on where it stopped when the same command is given again.

    Several processes share the work under torchrun, one for each GPU; on CPUs one for each socket, with
    OMP_NUM_THREADS set to its cores (torchrun's default is 1). All of them must see the model and the output
    folder under the same paths; their result differs from one process's by rounding alone, more so where
    samples are shorter than 512 tokens.

    A layer that GPTQ or LDLQ cannot solve is rounded to nearest, and listed in the summary and in
    qdeploy.json; so are experts that too few calibration tokens reached, whose statistics are trusted less,
    and layers that have no norm or layer before them which could take over what a transform scales. For
    different formats or methods layer by layer, write a recipe; `qdeploy recipe show` prints one to start
    from.

    Examples:

        qdeploy quantize HuggingFaceTB/SmolLM2-135M-Instruct --group-size auto -o smollm2-w4

        qdeploy quantize ./llama --asymmetric --calibration chats.jsonl --samples 256 -o llama-w4

        qdeploy quantize ./llama --calibration builtin --calibration c4@2 --samples 256 -o llama-w4

        qdeploy quantize ./llama --scheme W8A8 --method smoothquant+gptq -o llama-w8a8

        qdeploy quantize --recipe recipe.yaml -o out

        torchrun --nproc-per-node 8 -m qdeploy quantize ./llama -o llama-w4
    """
    import json as jsonlib

    from rich.console import Console

    from qdeploy.cli.fallbacks import describe_fallbacks
    from qdeploy.distributed import processes
    from qdeploy.memory import budget
    from qdeploy.pipeline import quantize as run
    from qdeploy.progress import console

    recipe, limits = asked.recipe(), budget(activation_memory, device_memory)
    with processes() as group:
        manifest = run(recipe, output, restart=restart, limits=limits, force=force, group=group)
    if not group.leads:
        return
    for line in describe_fallbacks(manifest["modules"]):
        console.print(f"[yellow]Fallback:[/] {line}", highlight=False)
    if json:
        typer.echo(jsonlib.dumps(manifest, indent=2))
    else:
        Console().print(summary(manifest, output))


def summary(manifest: dict[str, Any], output: Path) -> Table:
    """What was done, what it cost, and where the result can be served."""
    from rich.table import Table

    from qdeploy.checkpoint.inspection import inspect_checkpoint

    totals = manifest["totals"]
    before, after = totals["source_bytes"], totals["output_bytes"]
    table = Table(title=str(output), show_header=False)
    for kind in sorted({(module["scheme"], module["method"]) for module in manifest["modules"]}):
        modules = [m for m in manifest["modules"] if (m["scheme"], m["method"]) == kind]
        table.add_row(f"{kind[0]}, {kind[1]}", f"{len(modules)} layers, relative error {_errors(modules)}")
    fallbacks = sum(module["fallback"] is not None for module in manifest["modules"])
    if fallbacks:
        table.add_row("[yellow]With a fallback[/]", f"{fallbacks} layers, told above")
    table.add_row("Size", f"{before / MEGABYTE:.1f} MB → {after / MEGABYTE:.1f} MB ({before / after:.2f}×)")
    table.add_row("Time", f"{totals['seconds']:.1f} s")
    table.add_row("Peak memory", f"{totals['peak_rss_bytes'] / MEGABYTE:.0f} MB")
    engines = ", ".join(inspect_checkpoint(output).served_by)
    table.add_row("Served", SERVING[manifest["serving"]].format(output=output, engines=engines))
    return table


def _errors(modules: list[dict[str, Any]]) -> str:
    worst = max(modules, key=lambda module: module["relative_error"])
    mean = sum(module["relative_error"] for module in modules) / len(modules)
    return f"mean {mean:.3g}, worst {worst['relative_error']:.3g} ({worst['name']})"
