"""`qdeploy inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.checkpoint.inspection import Inspection
    from qdeploy.checkpoint.manifest import Manifest

MEGABYTE = 1_000_000
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

    Reads headers, config.json and qdeploy.json; no weight is decoded, so it answers at once for any size.
    Works on folders that qdeploy quantize wrote, on compressed-tensors checkpoints of other tools, and on
    16-bit models.

    Examples:

        qdeploy inspect smollm2-w4

        qdeploy inspect smollm2-w4 --modules

        qdeploy inspect smollm2-w4 --json | jq .bits_per_weight
    """
    from rich.console import Console

    from qdeploy.checkpoint.inspection import inspect_checkpoint

    found = inspect_checkpoint(folder)
    if json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = Console()
    console.print(_overview(found))
    if found.manifest and found.manifest.modules:
        console.print(_errors(found.manifest, None if modules else WORST))


def _overview(found: Inspection) -> Table:
    from rich.table import Table

    table = Table(title=str(found.folder), show_header=False)
    table.add_row("Architecture", f"{found.architecture}, {found.parameters / 1e6:.1f} M parameters")
    for use in found.schemes:
        table.add_row(use.scheme, f"{use.modules} layers, {use.bits_per_weight:.2f} bits per weight")
    if found.kv_cache:
        table.add_row("Keys and values", f"FP8, scales for {found.kv_cache} attentions")
    if not found.schemes:
        table.add_row("Scheme", f"not quantized, {found.dtype}")
    files = f"{found.files} {'file' if found.files == 1 else 'files'}"
    total = f"{found.bytes / MEGABYTE:.1f} MB in {files}"
    table.add_row("Size", f"{total}, {found.bits_per_weight:.2f} bits per weight")
    for part, size in found.bytes_by_part.items():
        table.add_row(f"  {part}", f"{size / MEGABYTE:.1f} MB ({size / found.bytes:.1%})")
    if found.manifest:
        _add_origin(table, found.manifest)
    table.add_row("Served by", ", ".join(found.served_by) or "no engine")
    return table


def _add_origin(table: Table, manifest: Manifest) -> None:
    """How qdeploy made the folder."""
    from rich.markup import escape

    made, calibration = manifest.provenance, manifest.calibration
    before, after = manifest.totals.source_bytes, manifest.totals.output_bytes
    table.add_row("Made from", f"{manifest.model.source}, {before / max(after, 1):.2f}× smaller")
    if calibration:
        several = len(calibration.parts) > 1
        parts = ", ".join(f"{part.source} ({part.samples})" for part in calibration.parts)
        table.add_row(
            "Calibration",
            f"{calibration.samples} × {calibration.sequence_length} tokens of "
            f"{parts if several else calibration.source}, "
            f"seed {calibration.seed}, sha256 {calibration.sha256[:12]}",
        )
    for warning in manifest.warnings:
        table.add_row("[yellow]Warning[/]", escape(warning))
    table.add_row("Made", f"{made.get('created', 'unknown')} in {manifest.totals.seconds:.0f} s")
    packages = {"qdeploy": made.get("qdeploy"), **made.get("packages", {})}
    table.add_row("Versions", ", ".join(f"{name} {number}" for name, number in packages.items()))
    table.add_row("Recipe", f"sha256 {manifest.recipe_sha256[:12]}")


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
