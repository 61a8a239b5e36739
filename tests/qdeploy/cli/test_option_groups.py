"""Dataclasses of options as typer sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from qdeploy.cli.option_groups import with_groups


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option("--wide", help="Columns.")]
    tags: Annotated[list[str] | None, typer.Option(help="Words.")] = None
    depth: Annotated[int, typer.Option(min=1, help="Layers.")] = 3


@with_groups
def draw(
    name: Annotated[str, typer.Argument(help="Of it.")],
    size: Size,
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Draw it."""
    typer.echo(f"{name} {size} {json}")


APP = typer.Typer()
APP.command()(draw)


def test_fields_are_options_and_come_back_as_the_class() -> None:
    given = ["box", "--wide", "4", "--tags", "a", "--tags", "b", "--json"]
    done = CliRunner().invoke(APP, given)
    assert done.stdout == f"box {Size(4, ['a', 'b'])} True\n", done.output


def test_a_field_without_a_default_is_required_and_bounds_hold() -> None:
    missing = CliRunner().invoke(APP, ["box"])
    assert missing.exit_code == 2 and "--wide" in missing.output
    beyond = CliRunner().invoke(APP, ["box", "--wide", "4", "--depth", "0"])
    assert beyond.exit_code == 2 and "--depth" in beyond.output


def test_help_has_them_in_the_place_of_the_class() -> None:
    text = CliRunner().invoke(APP, ["--help"]).output
    places = [text.index(words) for words in ("Draw it", "Columns.", "Words.", "Layers.", "--json")]
    assert places == sorted(places)
