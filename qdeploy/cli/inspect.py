"""`qdeploy inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.checkpoint.manifest import Manifest

WORST = 10
"""Layers in the error table unless all are asked for."""


def inspect(
    folder: Annotated[Path, typer.Argument(help="The checkpoint folder.", show_default=False)],
    modules: Annotated[bool, typer.Option("--modules", help="List every layer, not the worst ten.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON on standard output.")
    ] = False,
) -> None:
    """Show what is in a checkpoint folder and what can serve it.

    Model, parts and their sizes, schemes, cache, where it comes from, and who can serve it, as a tree; then
    the layers with the largest errors. Reads headers, config.json and qdeploy.json; no weight is decoded, so
    it answers at once for any size.
    Works on folders that qdeploy quantize wrote, on compressed-tensors checkpoints of other tools, and on
    16-bit models.

    Examples:

        qdeploy inspect smollm2-w4

        qdeploy inspect smollm2-w4 --modules

        qdeploy inspect smollm2-w4 --json | jq .bits_per_weight
    """
    from rich.console import Console

    from qdeploy.checkpoint.inspection import inspect_checkpoint
    from qdeploy.cli.inspected import overview

    found = inspect_checkpoint(folder)
    if json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = Console()
    console.print(overview(found))
    if found.manifest and found.manifest.modules:
        console.print(_errors(found.manifest, None if modules else WORST))


def _errors(manifest: Manifest, limit: int | None) -> Table:
    """Layers by relative error, worst first."""
    from rich.table import Table

    ranked = sorted(manifest.modules, key=lambda m: (m.relative_error is None, -(m.relative_error or 0.0)))
    shown = ranked[:limit]
    title = "Layers, worst first" if limit is None else f"Worst {len(shown)} of {len(ranked)} layers"
    table = Table(title=title)
    table.add_column("Layer", overflow="fold")
    mixed = len({module.scheme for module in ranked}) > 1
    for heading in ("Scheme", "Method") if mixed else ("Method",):
        table.add_column(heading)
    for heading in ("Error", "Damping"):
        table.add_column(heading, justify="right")
    for module in shown:
        error = "–" if module.relative_error is None else f"{module.relative_error:.3g}"
        damp = "–" if module.damp is None else f"{module.damp:.3g}"
        method = f"{module.method} [yellow]fallback[/]" if module.fallback else module.method
        scheme = (module.scheme,) if mixed else ()
        table.add_row(module.name, *scheme, method, error, damp)
    return table
