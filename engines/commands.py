"""The commands `qdeploy engines` and `qdeploy serve`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qdeploy.engines.environment import Environment
    from qdeploy.engines.vllm import RunningEngine

app = typer.Typer(no_args_is_help=True, help="Install and list the engines that serve models.")


class DeviceChoice(StrEnum):
    """Values of `--device`."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.command("install")
def install(
    engine: Annotated[str, typer.Argument(help="Engine: vllm.")],
    device: Annotated[
        DeviceChoice,
        typer.Option(help="Build; auto: cuda where nvidia-smi lists a GPU, else cpu."),
    ] = DeviceChoice.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print the environment as JSON on stdout.")] = False,
) -> None:
    """Install an engine into an environment of its own.

    The environment goes to $QDEPLOY_HOME/engines, by default
    ~/.local/share/qdeploy/engines, apart from the one qdeploy runs in,
    because engines pin their own torch. An interrupted installation is
    redone; a complete one is left alone. pip's own settings apply, such as
    PIP_INDEX_URL for a mirror. To use a vLLM that you have already, set
    QDEPLOY_VLLM_PYTHON to its Python instead.

    Examples:

        qdeploy engines install vllm

        qdeploy engines install vllm --device cpu
    """
    from qdeploy.engines import environment
    from qdeploy.progress import console

    if device is DeviceChoice.auto:
        chosen = environment.detect_device()
    else:
        chosen = "cuda" if device is DeviceChoice.cuda else "cpu"
    done = environment.install(engine, chosen, lambda line: console.print(line, highlight=False))
    if as_json:
        typer.echo(json.dumps(_facts(done)))


@app.command("list")
def list_engines(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list on stdout.")] = False,
) -> None:
    """List the installed engines: version, device, size and place.

    Example:

        qdeploy engines list --json
    """
    from qdeploy.engines.environment import installed
    from qdeploy.home import home

    found = installed()
    if as_json:
        typer.echo(json.dumps([_facts(environment) for environment in found], indent=2))
        return
    for one in found:
        size = one.size_bytes()
        shown = f"{size / 1e9:.1f} GB" if size is not None else "not ours"
        typer.echo(f"{one.engine} {one.version} {one.device:4} {shown:>9}  {one.python}")
    if not found:
        typer.echo(
            f"No engine under {home() / 'engines'}. Install one: qdeploy engines install vllm", err=True
        )


def serve(
    deploy: Annotated[Path, typer.Argument(help="Folder: exported, quantized or 16-bit.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="After `--`: more arguments for the engine.", metavar="-- ARGS")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 chooses a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    log: Annotated[
        Path | None,
        typer.Option(help="The engine's output; by default $QDEPLOY_HOME/logs/serve.log."),
    ] = None,
    deadline: Annotated[float, typer.Option(help="Seconds the engine may take until it answers.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when it answers.")] = False,
) -> None:
    """Serve a model with vLLM in the foreground, until Ctrl-C.

    Prints the URL of the OpenAI-compatible API once the model answers, and
    the kernel that runs the quantized layers according to the engine's own
    log. A quantized checkpoint that the engine serves unquantized is refused.
    Arguments that `qdeploy export` wrote into the folder are used; those
    after `--` come on top. The server asks for a key where the environment
    variable VLLM_API_KEY holds one.

    Examples:

        qdeploy serve DEPLOY

        qdeploy serve DEPLOY --port 9000 -- --max-model-len 4096
    """
    from qdeploy.engines.vllm import VllmEngine
    from qdeploy.home import home
    from qdeploy.progress import console

    engine, log = VllmEngine(), log or home() / "logs" / "serve.log"
    about = engine.environment
    console.print(
        f"Starting vLLM {about.version} ({about.device}); log: {log}", highlight=False, soft_wrap=True
    )
    try:
        running = engine.launch(
            deploy, log=log, port=port, host=host, arguments=arguments or (), deadline_s=deadline
        )
        with running:
            _announce(running, as_json)
            _wait(running)
    except KeyboardInterrupt:
        console.print("Stopped.")


def _announce(engine: RunningEngine, as_json: bool) -> None:
    from qdeploy.progress import console

    kernel = f"quantized layers run on {engine.kernel}" if engine.kernel else "16-bit, no quantized layers"
    line = f"Serving {engine.model} at {engine.base_url} ({kernel}; loaded in {engine.load_seconds:.0f} s)."
    console.print(f"{line} Ctrl-C stops it.", highlight=False, soft_wrap=True)
    if as_json:
        # Last: whoever reads it may stop the server at once.
        typer.echo(json.dumps(engine.describe()))


def _wait(engine: RunningEngine) -> None:
    from qdeploy.engines import logs
    from qdeploy.errors import EngineError

    code = engine.process.wait()
    reason = logs.failure(logs.read_log(engine.log))
    raise EngineError(f"The engine ended (exit code {code}).\n{reason}\n  Log: {engine.log}")


def _facts(environment: Environment) -> dict[str, str | int | None]:
    return {
        "engine": environment.engine,
        "version": environment.version,
        "device": environment.device,
        "python": str(environment.python),
        "folder": str(environment.folder) if environment.folder else None,
        "size_bytes": environment.size_bytes(),
    }
