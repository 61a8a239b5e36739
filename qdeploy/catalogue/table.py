"""Entries of the catalogue for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from qdeploy.catalogue.entry import Entry

GONE = "[red]not there any more[/]"


def render_entries(entries: Sequence[Entry]) -> RenderableType:
    """One row a run; the path below what it is."""
    if not entries:
        return "No such runs. `qdeploy runs scan FOLDER` enters those of a folder."
    table = Table("id", "when", "kind", "model", "tags", "what and where", box=SIMPLE_HEAD, pad_edge=False)
    for entry in entries:
        where = escape(str(entry.path)) if entry.is_there else f"{escape(str(entry.path))} {GONE}"
        table.add_row(
            entry.short,
            _local(entry),
            entry.kind,
            escape(entry.model),
            escape(" ".join(entry.tags)),
            f"{escape(entry.summary)}\n[dim]{where}[/]",
        )
    return table


def render_entry(entry: Entry) -> RenderableType:
    """All that is known of one run."""
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {
        "id": entry.identity,
        "kind": entry.kind,
        "model": entry.model,
        "when": _local(entry),
        "tags": " ".join(entry.tags) or "none",
        "figures": entry.summary or "none",
        "made by": entry.command() or "unknown",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    table.add_row("folder", escape(str(entry.path)) + ("" if entry.is_there else f" {GONE}"))
    return table


def _local(entry: Entry) -> str:
    return datetime.fromisoformat(entry.created).astimezone().strftime("%Y-%m-%d %H:%M")
