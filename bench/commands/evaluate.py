"""`qdeploy eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdeploy.bench.commands.eval_options import EvalOptions
from qdeploy.bench.commands.mlflow_option import MLFLOW, open_tracker
from qdeploy.cli.option_groups import with_groups
from qdeploy.errors import UsageError

if TYPE_CHECKING:
    from qdeploy.engines.endpoint import Endpoint


@with_groups
def evaluate(
    url: Annotated[str, typer.Argument(help="Base URL of the API, for example http://127.0.0.1:8000/v1.")],
    asked: EvalOptions,
    baseline: Annotated[
        str | None,
        typer.Option(help="What to compare with: the run folder of an earlier eval, or a URL."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Served model name; default: the only one.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Run folder to write; default: eval-MODEL.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the run record as JSON.")] = False,
    mlflow: Annotated[str | None, typer.Option(help=MLFLOW)] = None,
) -> None:
    """Measure a served model: fidelity to a baseline, and accuracy.

    Fidelity is measured on a text: perplexity, and, against the baseline, a lower bound of the
    Kullback-Leibler divergence and llama.cpp's table of statistics. The bound takes the tokens that the
    baseline likes best, whose log-probabilities the engine is asked for by their ids; where it cannot tell
    them, those that both models like best (docs/metrics.md). Protocols that perplexity is quoted by:
    gptq-wikitext2, gptq-ptb, gptq-ptb-new, gptq-c4, gptq-c4-new, lm-eval-wikitext, llama.cpp.

    Accuracy is of lm-eval's tasks, with its prompts and metrics (docs/tasks.md), or of `smoke`, qdeploy's own
    generated suite (docs/smoke-suite.md), not a public benchmark. A run that was stopped goes on with the
    same command. Against a baseline, items are paired, and the verdict is pass, fail or inconclusive. With
    --until-decided no more items are scored than the verdicts of all tasks take, looked at up to eight times
    with the error of looking allowed for (docs/verdicts.md). With --noise the baseline is scored a second
    time in another order; what a variant differs by no more than that is not called a difference.

    The endpoint must return log-probabilities of the prompt, as vLLM does; this is checked first. Text is
    tokenized here and sent as token ids. The API key is read from QDEPLOY_API_KEY or OPENAI_API_KEY.

    Examples:

        qdeploy eval http://127.0.0.1:8000/v1 --noise -o runs/baseline

        qdeploy eval http://127.0.0.1:8000/v1 --baseline runs/baseline --until-decided -o runs/w4a16

        qdeploy eval http://127.0.0.1:8000/v1 --text gptq-wikitext2 --data-dir DATA --tasks none

        qdeploy eval http://127.0.0.1:8000/v1 --tasks arc_easy,my_task.yaml --text none --limit 200

        qdeploy eval http://127.0.0.1:8000/v1 --suite s1 --data-dir data --text none
    """
    from rich.console import Console

    from qdeploy.bench.evaluation import run_eval
    from qdeploy.bench.render import render_eval
    from qdeploy.engines.endpoint import Endpoint
    from qdeploy.progress import console

    _check_has_baseline(baseline, asked)
    tracker = open_tracker(mlflow)
    with Endpoint(url, model) as endpoint:
        folder = output or Path(f"eval-{endpoint.model.replace('/', '-')}")
        record = run_eval(endpoint, asked.settings(), folder, _baseline(baseline))
    if tracker:
        tracker.log(record, folder)
    if json:
        typer.echo(record.model_dump_json(indent=2))
    else:
        Console().print(render_eval(record))
        console.print(f"Run folder: {folder}", highlight=False)


def _check_has_baseline(baseline: str | None, asked: EvalOptions) -> None:
    if asked.until_decided and baseline is None:
        raise UsageError("--until-decided decides against a baseline: give --baseline.")
    if asked.noise and baseline is not None and not _is_url(baseline):
        raise UsageError(
            f"--noise measures the baseline, and {baseline} is measured already. Give --noise when you "
            "evaluate the baseline."
        )


def _is_url(given: str) -> bool:
    return given.startswith(("http://", "https://"))


def _baseline(given: str | None) -> Path | Endpoint | None:
    """A URL is an endpoint, anything else a folder."""
    from qdeploy.engines.endpoint import Endpoint

    if given is None:
        return None
    return Endpoint(given) if _is_url(given) else Path(given)
