"""`qdeploy runs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from qdeploy.errors import UsageError

if TYPE_CHECKING:
    from qdeploy.catalogue.entry import Entry


class ListByDefault(TyperGroup):
    """`qdeploy runs --kind eval` is `qdeploy runs list --kind eval`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=ListByDefault)


@app.callback()
def _runs() -> None:
    """List, find and tag the runs of this machine; without a command, list them.

    Every quantize, convert, export, eval, bench, verify and run enters its folder in a catalogue when it has
    finished: an SQLite file, $QDEPLOY_CATALOGUE or runs.sqlite3 in $QDEPLOY_HOME. It is an index of folders
    and can be rebuilt from them: `qdeploy runs scan`.
    """


@app.command("list")
def list_runs(
    kind: Annotated[
        str | None, typer.Option(help="quantize, convert, export, bench, eval, verify or campaign.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Part of the model's name or of the path.")] = None,
    since: Annotated[str | None, typer.Option(help="A date, 2026-01-31, or an age: 7d, 12h.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="With this tag; repeatable: with all.")] = None,
    paths: Annotated[
        bool, typer.Option("--paths", help="Print folders alone, those that are there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List runs, the newest first. Folders that were moved or removed are marked.

    Examples:

        qdeploy runs --kind eval --model smol --since 7d

        qdeploy compare $(qdeploy runs --tag baseline --paths) $(qdeploy runs --tag candidate --paths)
    """
    from rich.console import Console

    from qdeploy.catalogue.filters import wanted
    from qdeploy.catalogue.store import Catalogue
    from qdeploy.catalogue.table import render_entries

    with Catalogue() as catalogue:
        found = catalogue.find(wanted(kind, model, since, tag or ()))
    if as_json:
        typer.echo(json.dumps([_facts(entry) for entry in found], indent=2, ensure_ascii=False))
    elif paths:
        for entry in found:
            if entry.is_there:
                typer.echo(entry.path)
    else:
        Console().print(render_entries(found))


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Its id, path or name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, with the record.")] = False,
) -> None:
    """Show one run: where it lies, what it is, and the command that made it.

    Examples:

        qdeploy runs show 3fa1c09e
    """
    from rich.console import Console

    from qdeploy.catalogue.filters import chosen
    from qdeploy.catalogue.store import Catalogue
    from qdeploy.catalogue.table import render_entry

    with Catalogue() as catalogue:
        entry = chosen(catalogue, run)
    if as_json:
        typer.echo(json.dumps(_facts(entry) | {"record": entry.record()}, indent=2, ensure_ascii=False))
    else:
        Console().print(render_entry(entry))


@app.command(context_settings={"ignore_unknown_options": True})
def tag(
    run: Annotated[str, typer.Argument(help="Its id, path or name.")],
    changes: Annotated[list[str], typer.Argument(help="+TAG adds, -TAG removes.", metavar="+TAG|-TAG...")],
) -> None:
    """Add tags to a run or remove them. They are kept in tags.json in its folder.

    Examples:

        qdeploy runs tag 3fa1c09e +baseline -draft
    """
    from qdeploy.catalogue.filters import chosen
    from qdeploy.catalogue.store import Catalogue

    wrong = [change for change in changes if not change.startswith(("+", "-")) or not change[1:].strip()]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is no change of tags: write +TAG to add one, -TAG to remove one.")
    added, removed = ({change[1:] for change in changes if change[0] == sign} for sign in "+-")
    with Catalogue() as catalogue:
        entry = catalogue.tag(chosen(catalogue, run).path, added, removed)
    typer.echo(f"{entry.path}: {', '.join(entry.tags) or 'no tags'}")


@app.command()
def scan(
    folders: Annotated[list[Path], typer.Argument(help="Where to look, at any depth.")],
) -> None:
    """Enter every run folder at or below FOLDERS; those that have moved keep one entry.

    Examples:

        qdeploy runs scan runs /data/models
    """
    from qdeploy.catalogue.scan import scan as look
    from qdeploy.catalogue.store import Catalogue

    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise UsageError(f"{missing[0]} is no folder.")
    with Catalogue() as catalogue:
        count = sum(look(catalogue, folder) for folder in folders)
    typer.echo(f"{count} runs entered in {catalogue.path}.")


@app.command()
def prune() -> None:
    """Forget runs whose folders are not there any more. No folder is touched.

    Examples:

        qdeploy runs prune
    """
    from qdeploy.catalogue.store import Catalogue

    with Catalogue() as catalogue:
        gone = [entry.path for entry in catalogue.find() if not entry.is_there]
        catalogue.remove(gone)
    for path in gone:
        typer.echo(f"Forgot {path}")


def _facts(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.short,
        "kind": entry.kind,
        "name": entry.name,
        "model": entry.model,
        "created": entry.created,
        "tags": list(entry.tags),
        "summary": entry.summary,
        "path": str(entry.path),
        "is_there": entry.is_there,
    }
