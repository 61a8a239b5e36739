"""The `qdeploy` command: collects the commands registered as entry points and reports errors.

Modules that define commands import nothing heavier than typer at the top, so that every help page answers at
once; the work is imported inside the command.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from qdeploy import __version__
from qdeploy.errors import QDeployError

ORDER = (
    "plan",
    "methods",
    "sensitivity",
    "sample",
    "quantize",
    "inspect",
    "lint",
    "convert",
    "export",
    "serve",
    "verify",
    "eval",
    "bench",
    "run",
    "report",
    "compare",
    "runs",
    "import",
    "recipe",
    "engines",
    "doctor",
)
"""The order of work; commands of third parties come after."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"qdeploy {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Quantize a language model, serve it, and prove what that cost and what it won.

    checkpoint → quantize → packed safetensors → export → engine-ready folder →
    serve → endpoint → eval, bench → report, compare
    """


def build() -> typer.Typer:
    """The whole command-line application."""
    app = typer.Typer(
        name="qdeploy",
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_root)
    for point in sorted(entry_points(group="qdeploy.commands"), key=_position):
        command = point.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(point.name)(command)
    return app


def _position(point: EntryPoint) -> tuple[int, str]:
    return (ORDER.index(point.name) if point.name in ORDER else len(ORDER), point.name)


def main() -> None:
    """Run the command line; errors become one message and an exit code."""
    try:
        build()()
    except QDeployError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("Interrupted.", INTERRUPTED)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        _fail("Interrupted.", INTERRUPTED)  # typer says nothing
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, code: int) -> None:
    from rich.console import Console

    Console(stderr=True).print(f"[bold red]Error:[/] {_escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
