"""`qdeploy eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qdeploy.engines.endpoint import Endpoint


def evaluate(
    url: Annotated[str, typer.Argument(help="Base URL of the API, for example http://127.0.0.1:8000/v1.")],
    baseline: Annotated[
        str | None,
        typer.Option(help="What to compare with: the run folder of an earlier eval, or a URL."),
    ] = None,
    text: Annotated[
        str, typer.Option(help="Text for fidelity: a text file, `builtin`, or `none`.")
    ] = "builtin",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder with the model's tokenizer; default: the local folder that vLLM serves."),
    ] = None,
    windows: Annotated[int, typer.Option(help="Windows of text to score, from its start.")] = 32,
    window_tokens: Annotated[int, typer.Option(help="Tokens a window.")] = 512,
    top_k: Annotated[
        int, typer.Option(help="Log-probabilities kept a position; at most the engine's --max-logprobs.")
    ] = 128,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: `smoke`, lm-eval task names or YAML files, or `none`; default: `smoke`, "
            "but `none` with --suite."
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Suite of tasks: `s1` (26 data sets) or `openllm`.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question; default: the task's own number.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with the data sets' original files (docs/tasks.md); default: the hub."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first items of each task.")] = None,
    margin: Annotated[
        float, typer.Option(help="Share of the baseline's accuracy that may be lost and still pass.")
    ] = 0.01,
    concurrency: Annotated[int, typer.Option(help="Requests in flight.")] = 8,
    model: Annotated[str | None, typer.Option(help="Served model name; default: the only one.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Run folder to write; default: eval-MODEL.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the run record as JSON.")] = False,
) -> None:
    """Measure a served model: fidelity to a baseline, and accuracy.

    Fidelity is measured on a text: perplexity by the protocol of the GPTQ papers (non-overlapping windows),
    and, against the baseline, a lower bound of the Kullback-Leibler divergence from the top log-probabilities
    of both models and the share of positions where both like the same token best. Accuracy is of lm-eval's
    tasks, with its prompts and metrics, or of `smoke`, qdeploy's own generated suite (docs/smoke-suite.md),
    not a public benchmark. Against a baseline, items are paired, and the verdict is pass, fail or
    inconclusive. A run that was stopped goes on with the same command.

    The endpoint must return log-probabilities of the prompt, as vLLM does; this is checked first. Text is
    tokenized here and sent as token ids. The API key is read from QDEPLOY_API_KEY or OPENAI_API_KEY.

    Examples:

        qdeploy eval http://127.0.0.1:8000/v1 -o runs/baseline

        qdeploy eval http://127.0.0.1:8000/v1 --baseline runs/baseline -o runs/w4a16

        qdeploy eval http://127.0.0.1:8000/v1 --tasks arc_easy,my_task.yaml --text none --limit 200

        qdeploy eval http://127.0.0.1:8000/v1 --suite s1 --data-dir data --text none
    """
    from rich.console import Console

    from qdeploy.bench.evaluation import EvalSettings, run_eval
    from qdeploy.bench.render import render_eval
    from qdeploy.engines.endpoint import Endpoint
    from qdeploy.progress import console

    settings = EvalSettings(
        text=None if text == "none" else text,
        tokenizer=tokenizer,
        windows=windows,
        window_tokens=window_tokens,
        top_k=top_k,
        tasks=_names(tasks, suite),
        suite=suite,
        num_fewshot=num_fewshot,
        data_dir=data_dir,
        limit=limit,
        margin=margin,
        concurrency=concurrency,
    )
    with Endpoint(url, model) as endpoint:
        folder = output or Path(f"eval-{endpoint.model.replace('/', '-')}")
        record = run_eval(endpoint, settings, folder, _baseline(baseline))
    if json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        Console().print(render_eval(record))
        console.print(f"Run folder: {folder}", highlight=False)


def _names(tasks: str | None, suite: str | None) -> tuple[str, ...]:
    given = tasks or ("none" if suite else "smoke")
    return () if given == "none" else tuple(name.strip() for name in given.split(","))


def _baseline(given: str | None) -> Path | Endpoint | None:
    """A URL is an endpoint, anything else a folder."""
    from qdeploy.engines.endpoint import Endpoint

    if given is None:
        return None
    return Endpoint(given) if given.startswith(("http://", "https://")) else Path(given)
