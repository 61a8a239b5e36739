"""`qdeploy bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.errors import UsageError

if TYPE_CHECKING:
    from qdeploy.bench.load import LoadSpec


def bench(
    url: Annotated[str, typer.Argument(help="Base URL of the API, for example http://127.0.0.1:8000/v1.")],
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests per second, sent on time come what may.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: requests in flight; each waits for an earlier one.")
    ] = None,
    num_requests: Annotated[int, typer.Option(help="Measured requests.")] = 200,
    arrival: Annotated[str, typer.Option(help="Open loop: poisson or constant.")] = "poisson",
    prompt_tokens: Annotated[int, typer.Option(help="Length of every prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Length of every answer.")] = 32,
    warmup: Annotated[int, typer.Option(help="Requests before the measurement.")] = 4,
    seed: Annotated[int, typer.Option(help="Fixes the arrival times.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds until a request counts as failed.")] = 600.0,
    model: Annotated[str | None, typer.Option(help="Served model name; default: the first served.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with tokenizer.json, for endpoints without /tokenize.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Run folder to write.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Put load on an endpoint; measure its latency and throughput.

    Requests stream, are greedy and have prompts that no cache has seen. In an open loop (--rate) they are
    sent when they are due, so a stalled server cannot slow the load down; latencies are given from the
    sending and from the scheduled time. In a closed loop (--concurrency) a fixed number is in flight.
    Percentiles come with 95 % intervals and are refused where there are too few requests: p99 needs 299.
    Every figure is defined in docs/metrics.md.

    The API key is read from QDEPLOY_API_KEY or OPENAI_API_KEY.

    Examples:

        qdeploy bench http://127.0.0.1:8000/v1 --rate 4 --num-requests 300 -o runs/bench

        qdeploy bench http://127.0.0.1:8000/v1 --concurrency 16 --prompt-tokens 512 --output-tokens 128
    """

    from rich.console import Console

    from qdeploy.bench.load import measure, save
    from qdeploy.bench.load.render import render
    from qdeploy.bench.run_folder import check_free

    spec = _spec(
        rate=rate,
        concurrency=concurrency,
        arrival=arrival,
        requests=num_requests,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        warmup=warmup,
        seed=seed,
        timeout_s=timeout,
    )
    if output:
        check_free(output)
    measurement = measure(spec, url, model, tokenizer=tokenizer)
    if output:
        save(measurement, spec, output)
    if json:
        typer.echo(measurement.result.model_dump_json(indent=2))
    else:
        Console().print(render(measurement.result))


def _spec(**options: Any) -> LoadSpec:
    """The options as a LoadSpec; what is wrong with one is said under the option's own name."""
    from pydantic import ValidationError

    from qdeploy.bench.load import LoadSpec

    try:
        return LoadSpec(**options)
    except ValidationError as error:
        problems = [_problem(str(e["loc"][0]) if e["loc"] else "", e["msg"]) for e in error.errors()]
        raise UsageError("; ".join(problems) + ".") from error


def _problem(field: str, message: str) -> str:
    if not field:
        return "Give either --rate (open loop) or --concurrency (closed loop)"
    option = {"requests": "num-requests", "timeout_s": "timeout"}.get(field, field.replace("_", "-"))
    return f"--{option}: {message}"
