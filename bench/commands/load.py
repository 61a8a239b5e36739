"""`qdeploy bench`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.errors import GateError, Interrupted, UsageError

if TYPE_CHECKING:
    from qdeploy.bench.load import LoadSpec, Measurement
    from qdeploy.bench.records import LoadResult

OPTIONS = {"requests": "num-requests", "timeout_s": "timeout"}
"""Fields of LoadSpec whose option has another name."""


def bench(
    url: Annotated[str, typer.Argument(help="Base URL of the API, for example http://127.0.0.1:8000/v1.")],
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests per second, sent on time come what may.")
    ] = None,
    end_rate: Annotated[
        float | None, typer.Option(help="Open loop: rate at the last request; it changes linearly.")
    ] = None,
    arrival: Annotated[str, typer.Option(help="Open loop: poisson, gamma or constant.")] = "poisson",
    burstiness: Annotated[
        float, typer.Option(help="Gamma arrivals: below 1 they come in bursts, above 1 more evenly.")
    ] = 1.0,
    trace: Annotated[
        Path | None, typer.Option(help="Replay: an Azure, BurstGPT, Mooncake or plain trace.")
    ] = None,
    time_scale: Annotated[float, typer.Option(help="Replay: 0.5 is twice as fast as recorded.")] = 1.0,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: requests in flight; each waits for an earlier one.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Run at rates up to saturation; find the knee.")
    ] = False,
    slo: Annotated[
        str | None,
        typer.Option(help="Limits, e.g. p99_ttft=500ms,p99_tpot=50ms. With no load: find the highest rate."),
    ] = None,
    num_requests: Annotated[int, typer.Option(help="Measured requests.")] = 200,
    prompt_tokens: Annotated[int, typer.Option(help="Length of every prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Length of every answer.")] = 32,
    dataset: Annotated[
        Path | None, typer.Option(help="Prompts: ShareGPT-style JSON, or JSON lines with a prompt.")
    ] = None,
    turns: Annotated[int, typer.Option(help="Dataset: at most so many turns of a conversation.")] = 1,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--completions", help="Route; default: what the endpoint takes.", show_default=False
        ),
    ] = None,
    stream: Annotated[bool, typer.Option(help="Have answers streamed.")] = True,
    ignore_eos: Annotated[bool, typer.Option(help="Have every answer be as long as asked.")] = True,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text at which an answer ends; may be repeated.", show_default=False),
    ] = None,
    warmup: Annotated[int, typer.Option(help="Requests before the measurement.")] = 4,
    seed: Annotated[int, typer.Option(help="Fixes the arrival times.")] = 0,
    salt: Annotated[
        str | None, typer.Option(help="Hex digits that with the seed fix the prompts; default: new ones.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds until a request counts as failed.")] = 600.0,
    model: Annotated[str | None, typer.Option(help="Served model name; default: the first served.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with tokenizer.json, for endpoints without /tokenize.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Run folder of the unquantized model, to compare output lengths.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Price of the server, for the cost of a million tokens.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Run folder to write.", show_default=False)
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, with exit code 1, if a run is invalid.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Put load on an endpoint; measure its latency and throughput.

    Requests stream, are greedy and have prompts that no cache has seen. In an open loop (--rate, --trace)
    they are sent when they are due, so a stalled server cannot slow the load down; latencies are given from
    the sending and from the scheduled time. In a closed loop (--concurrency) a fixed number is in flight.
    Percentiles come with 95 % intervals and are refused where there are too few requests: p99 needs 299.
    --sweep and --slo without a load make several runs; with -o they go on where they were interrupted.
    Every figure is defined in docs/metrics.md.

    The API key is read from QDEPLOY_API_KEY or OPENAI_API_KEY.

    Examples:

        qdeploy bench http://127.0.0.1:8000/v1 --rate 4 --num-requests 300 -o runs/bench

        qdeploy bench http://127.0.0.1:8000/v1 --trace AzureLLMInferenceTrace_conv.csv --time-scale 2

        qdeploy bench http://127.0.0.1:8000/v1 --slo p99_ttft=500ms,p99_tpot=50ms --num-requests 500
    """
    from functools import partial

    from qdeploy.bench.load import measure

    fields = {
        "rate": rate,
        "end_rate": end_rate,
        "arrival": arrival,
        "burstiness": burstiness,
        "trace": trace and str(trace),
        "time_scale": time_scale,
        "concurrency": concurrency,
        "slo": slo,
        "requests": num_requests,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "dataset": dataset and str(dataset),
        "turns": turns,
        "chat": chat,
        "stream": stream,
        "ignore_eos": ignore_eos,
        "stop": stop or (),
        "warmup": warmup,
        "seed": seed,
        "timeout_s": timeout,
        "price_per_hour": price_per_hour,
    } | ({"salt": salt} if salt else {})
    measuring = partial(measure, base_url=url, model=model, tokenizer=tokenizer)
    if sweep or (slo and not (rate or concurrency or trace)):
        if baseline:
            raise UsageError("--baseline is for one run: give it with --rate, --trace or --concurrency.")
        results = _several(fields, measuring, output, sweep, json)
    else:
        results = [_one(_spec(**fields), measuring, output, baseline, json)]
    reasons = [reason for result in results for reason in result.invalid]
    if strict and reasons:
        raise GateError(f"The measurement is invalid: {'; '.join(dict.fromkeys(reasons))}.")


def _one(
    spec: LoadSpec,
    measuring: Callable[[LoadSpec], Measurement],
    output: Path | None,
    baseline: Path | None,
    json: bool,
) -> LoadResult:
    """One run: measured, written, shown."""
    from rich.console import Console

    from qdeploy.bench.load import save
    from qdeploy.bench.load.figures.assess import compare_lengths
    from qdeploy.bench.load.figures.render import render
    from qdeploy.bench.load.figures.table import output_lengths
    from qdeploy.bench.run_folder import check_free

    lengths = output_lengths(baseline) if baseline else None
    if output:
        check_free(output)
    measurement = measuring(spec)
    if lengths:
        compare_lengths(measurement.result, measurement.outcomes, lengths)
    if output:
        save(measurement, spec, output)
    if json:
        typer.echo(measurement.result.model_dump_json(indent=2))
    else:
        Console().print(render(measurement.result))
    if measurement.result.interrupted:
        raise Interrupted(f"Interrupted after {measurement.result.requests} of {spec.requests} requests.")
    return measurement.result


def _several(
    fields: dict[str, Any],
    measuring: Callable[[LoadSpec], Measurement],
    output: Path | None,
    sweeping: bool,
    json: bool,
) -> list[LoadResult]:
    """A sweep, or the search of the highest rate that meets the objective."""
    from rich.console import Console

    from qdeploy.bench.load.series import sweep
    from qdeploy.bench.load.series.series import Series
    from qdeploy.bench.load.series.series_table import render_series
    from qdeploy.files import write_text

    if fields["rate"] or fields["end_rate"] or fields["concurrency"] or fields["trace"]:
        raise UsageError(
            "--sweep sets the rates itself: leave out --rate, --end-rate, --concurrency, --trace."
        )
    if fields["turns"] > 1:
        raise UsageError(
            "--turns make sessions of several requests, whose rate a sweep cannot set: leave it out."
        )
    series = Series(_spec(**fields | {"concurrency": 1}), measuring, output)
    if sweeping:
        sweep.sweep(series)
    else:
        sweep.search(series)
    found = sweep.summarize_series(series.results)
    if output:
        write_text(output / "series.json", found.model_dump_json(indent=2) + "\n")
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        Console().print(render_series(found))
    return found.runs


def _spec(**fields: Any) -> LoadSpec:
    """The options as a LoadSpec; what is wrong with one is said under the option's own name."""
    from pydantic import ValidationError

    from qdeploy.bench.load import LoadSpec

    try:
        return LoadSpec(**fields)
    except ValidationError as error:
        problems = [_problem(str(e["loc"][0]) if e["loc"] else "", e["msg"]) for e in error.errors()]
        raise UsageError("; ".join(problems) + ".") from error


def _problem(field: str, message: str) -> str:
    message = re.sub(r"`(\w+)`", lambda match: _option(match[1]), message.removeprefix("Value error, "))
    return f"{_option(field)}: {message}" if field else message[0].upper() + message[1:]


def _option(field: str) -> str:
    return "--" + OPTIONS.get(field, field.replace("_", "-"))
