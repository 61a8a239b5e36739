"""`qdeploy methods`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.errors import EntryPointError
    from qdeploy.methods.registered import Knob, Method
    from qdeploy.serving import Served


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this method's knobs.", show_default=False)
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            help="Device that engines are asked about, as of qdeploy export: h100, cpu-avx512 … Give it "
            "several times to compare. Default: auto, this machine's GPU or else CPU.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Model folder whose layers engines are asked about, the worst of them. Default: a layer of "
            "4096 × 4096.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON on standard output.")] = False,
) -> None:
    """List methods and their knobs, and what each scheme is on each engine.

    A rounder makes codes; transforms may go before it, joined by + in --method. On an engine a scheme is
    native (packed, with a kernel of its own), converted (stored in another format without loss) or
    reference (no kernel: of use for accuracy alone). Fused layers, experts and the split over devices are
    looked at by qdeploy export.

    Methods of installed packages are listed like qdeploy's own; docs/adding-a-method.md says how to write
    one.

    Examples:

        qdeploy methods

        qdeploy methods gptq

        qdeploy methods --gpu h100 --gpu cpu-avx512 --model ./llama

        qdeploy methods --json | jq '.schemes[] | select(.kind == "native")'
    """
    from dataclasses import asdict

    from qdeploy.methods.registered import find, find_all
    from qdeploy.serving import TYPICAL, serve_all, shapes_of

    if name is not None:
        found = find(name)
        _show(asdict(found), [_knobs(found)], (), json)
        return
    installed, broken = find_all()
    served, broken_exporters = serve_all(shapes_of(model) if model else TYPICAL, gpu or ["auto"])
    broken += broken_exporters
    content = {
        "methods": [asdict(method) for method in installed],
        "schemes": [_as_json(row) for row in served],
        "broken": [{"name": e.name, "origin": e.origin, "reason": e.reason} for e in broken],
    }
    _show(content, [_overview(installed), _schemes(served)], broken, json)


def _show(content: Any, tables: Sequence[Table], broken: Sequence[EntryPointError], json: bool) -> None:
    import json as jsonlib

    from rich.console import Console

    from qdeploy.progress import warn

    if json:
        typer.echo(jsonlib.dumps(content, indent=2, default=str))
        return
    for table in tables:
        Console().print(table)
    for error in broken:
        warn(str(error))


def _as_json(found: Served) -> dict[str, Any]:
    return {
        "scheme": found.scheme.name,
        "stored": found.scheme.describe(),
        "engine": found.engine,
        "device": found.device,
        "kind": found.support.kind,
        "reason": found.support.reason,
    }


def _table(title: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _overview(installed: Sequence[Method]) -> Table:
    from rich.markup import escape

    table = _table("Methods", "Name", "Kind", "Calibration", "Layers", "What it does")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for found in installed:
        told = found.summary if found.origin.startswith("qdeploy ") else f"{found.summary} ({found.origin})"
        needs = "needed" if found.needs_calibration else "–"
        layers = "reference" if found.without_kernel else "packed"
        table.add_row(found.name, found.kind, needs, layers, escape(told))
    return table


def _knobs(found: Method) -> Table:
    from rich.markup import escape

    title = f"{found.name}, a {found.kind} of {found.origin}"
    table = _table(title, "Knob", "Type", "Bounds", "Default", "What it is")
    table.caption = escape(found.summary)
    for knob in found.knobs:
        default = "required" if knob.required else _as_yaml(knob.default)
        table.add_row(knob.name, escape(knob.type), _bounds(knob), default, escape(knob.description))
    return table


def _bounds(knob: Knob) -> str:
    from qdeploy.methods.registered import BOUNDS

    return ", ".join(f"{BOUNDS[bound]} {value:g}" for bound, value in knob.bounds.items()) or "–"


def _as_yaml(value: Any) -> str:
    """A default as one would write it in a recipe."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _schemes(served: Sequence[Served]) -> Table:
    from rich.markup import escape

    colours = {"native": "green", "converted": "yellow", "reference": "red"}
    table = _table("Schemes", "Scheme", "Engine", "Device", "There", "Kernel, or why there is none")
    for found in served:
        kind = f"[{colours[found.support.kind]}]{found.support.kind}[/]"
        stored = escape(found.scheme.describe())
        table.add_row(stored, found.engine, found.device, kind, escape(found.support.reason))
    return table
