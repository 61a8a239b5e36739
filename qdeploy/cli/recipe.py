"""`qdeploy recipe`."""

from __future__ import annotations

from typing import Annotated

import typer

from qdeploy.cli import recipe_options as options

app = typer.Typer(no_args_is_help=True, help="Look at recipes: what is done to which layers, on which data.")


@app.callback()
def _recipe() -> None:
    """Look at recipes: what is done to which layers, on which data."""


@app.command()
@options.with_recipe
def show(
    asked: options.Asked,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Print the complete recipe that a file or the flags of `qdeploy quantize` stand for.

    Every knob is written out with its value. The output is a recipe file itself: edit it, and give it to
    `qdeploy quantize --recipe`. Rules are tried in order and the first that matches a layer decides; `match`
    is `Linear` (every linear layer of the blocks), a layer's name, or `re:` and a regular expression for the
    whole name; `scheme: none` leaves a layer in 16 bit.

    Examples:

        qdeploy recipe show ./llama --scheme W4A16 --group-size 64 > recipe.yaml

        qdeploy recipe show --recipe recipe.yaml --json
    """
    found = asked.recipe()
    typer.echo(found.model_dump_json(indent=2) if json else found.to_yaml(), nl=json)
