"""`qdeploy plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli import recipe_options as options

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.rehearsal import Outlook


@options.with_recipe
def plan(
    asked: options.Asked,
    activation_memory: options.ActivationMemory = None,
    device_memory: options.DeviceMemory = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder that quantize would make, for the room on its disk."),
    ] = Path("out"),
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON on standard output.")] = False,
) -> None:
    """Print what quantize would need: bytes of RAM, GPU and disk, time, and every kind of layer.

    Takes the options of qdeploy quantize. Sizes come from shapes alone. For the time, the calibration
    samples are embedded and the first two blocks quantized for real, which takes as long as in the run;
    their result is thrown away. If the run does not fit, nothing is timed, and the smallest change is
    printed that makes it fit.

    Examples:

        qdeploy plan ./llama --group-size 64

        qdeploy plan ./llama --samples 512 --activation-memory 4GiB

        qdeploy plan --recipe recipe.yaml --json | jq .seconds
    """
    import json as jsonlib

    from rich.console import Console

    from qdeploy.memory import budget
    from qdeploy.rehearsal import rehearse

    limits = budget(activation_memory, device_memory)
    found = rehearse(asked.recipe(), output, limits)
    if json:
        typer.echo(jsonlib.dumps(as_json(found), indent=2))
        return
    console = Console()
    console.print(needs(found))
    console.print(layers(found))
    for problem in found.problems:
        console.print(f"[red]Does not fit:[/] {problem}", highlight=False)


def as_json(found: Outlook) -> dict[str, Any]:
    """Bytes and seconds, for programs."""
    from dataclasses import asdict

    needed = found.needed
    peaks = {"memory": needed.memory, "device": needed.device, "disk": needed.disk}
    return {
        "peak_bytes": peaks,
        "bytes_by_part": {**asdict(needed), "holes": needed.holes},
        "seconds": asdict(found.timing) if found.timing else None,
        "layers": _layers(found),
        "problems": found.problems,
    }


def needs(found: Outlook) -> Table:
    """Bytes by part and time."""
    from rich.table import Table

    from qdeploy.memory import format_size

    needed = found.needed
    where = "GPU" if needed.on_device else "RAM"
    rows = [
        ("Interpreter and libraries", "RAM", needed.libraries),
        ("Embeddings, only at the start", where, needed.embeddings),
        ("Embeddings and head as they are written", "RAM", needed.rest),
        ("One block and its codes", where, needed.block),
        ("Hessians", where, needed.hessians),
        ("Solving a layer", where, needed.solving),
        ("Hidden states between blocks", "RAM", needed.states),
        ("Activations of the micro-batch that runs", where, needed.running),
        (f"Activations of {needed.halting} of {needed.batches} that wait", where, needed.halted),
        ("Freed tensors that the heap keeps, as there is room", "RAM", needed.holes),
        ("Hidden states, for a while", "disk", needed.spilled),
        ("The checkpoint", "disk", needed.output),
    ]
    table = Table(title="What the run needs", show_header=False)
    for part, place, size in rows:
        if size:
            table.add_row(part, place, format_size(size))
    table.add_section()
    for place, size in (("RAM", needed.memory), ("GPU", needed.device), ("disk", needed.disk)):
        if size:
            table.add_row("Peak, as not all are there at once", place, format_size(size))
    if found.timing:
        each = ", ".join(f"{seconds:.1f} s" for seconds in found.timing.blocks)
        table.add_row(
            f"{len(found.blocks)} blocks; the first took {each}", "time", _duration(found.timing.total)
        )
    return table


def layers(found: Outlook) -> Table:
    """Layers of one shape in a row, with their Hessian."""
    from rich.table import Table

    from qdeploy.memory import format_size

    table = Table(title="Layers; those that read the same tensor share a Hessian")
    for heading in ("Layer", "Count", "Shape", "How", "Hessian"):
        table.add_column(heading, justify="left" if heading in ("Layer", "How") else "right")
    for row in _layers(found):
        size = format_size(row["hessian_bytes"]) if row["hessian_bytes"] else "–"
        n, k = row["shape"]
        table.add_row(row["name"], str(row["count"]), f"{n} × {k}", row["how"], size)
    return table


def _layers(found: Outlook) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from qdeploy.estimate import layer_kinds

    return [asdict(kind) for kind in layer_kinds(found.plan, found.blocks)]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"about {hours} h {minutes} min"
    return f"about {minutes} min {rest} s" if minutes else f"about {rest} s"
