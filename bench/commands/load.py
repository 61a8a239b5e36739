"""`qdeploy bench`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.bench.commands.load_options import LoadOptions, spec_of
from qdeploy.bench.commands.mlflow_option import MLFLOW, open_tracker
from qdeploy.cli.option_groups import with_groups
from qdeploy.errors import EndpointError, GateError, Interrupted, UsageError

if TYPE_CHECKING:
    from qdeploy.bench.load.run import Measurement
    from qdeploy.bench.load.spec import LoadSpec
    from qdeploy.bench.records import LoadResult


@with_groups
def bench(
    url: Annotated[str, typer.Argument(help="Base URL of the API, for example http://127.0.0.1:8000/v1.")],
    load: LoadOptions,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Run at rates up to saturation; find the knee.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Served model name; default: the first served.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with tokenizer.json, for endpoints without /tokenize.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Run folder of the unquantized model, to compare output lengths.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Run folder to write.", show_default=False)
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, with exit code 1, if a run is invalid.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    mlflow: Annotated[str | None, typer.Option(help=f"{MLFLOW} Needs -o.")] = None,
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

    from qdeploy.bench.load.run import measure
    from qdeploy.bench.records import load_record

    if mlflow and output is None:
        raise UsageError("--mlflow logs a run folder: give -o.")
    fields, tracker = load.fields(), open_tracker(mlflow)
    measuring = partial(measure, base_url=url, model=model, tokenizer=tokenizer)
    if sweep or (load.slo and not (load.rate or load.concurrency or load.trace)):
        if baseline:
            raise UsageError("--baseline is for one run: give it with --rate, --trace or --concurrency.")
        results = _several(fields, measuring, output, sweep, json)
    else:
        results = [_one(spec_of(**fields), measuring, output, baseline, json)]
    if tracker and output:
        for run in sorted(output.glob("**/run.json")):
            tracker.log(load_record(run.parent), run.parent)
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

    from qdeploy.bench.load.figures.assess import compare_lengths
    from qdeploy.bench.load.figures.render import render
    from qdeploy.bench.load.figures.table import output_lengths
    from qdeploy.bench.load.run import save
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
    if measurement.result.lost:
        where = f" What was measured is in {output}, marked invalid." if output else ""
        raise EndpointError(f"{measurement.target.base_url}: {measurement.result.invalid[-1]}.{where}")
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
    from qdeploy.bench.records import SERIES
    from qdeploy.files import write_text

    if fields.keys() & {"rate", "end_rate", "concurrency", "trace"}:
        raise UsageError(
            "--sweep sets the rates itself: leave out --rate, --end-rate, --concurrency, --trace."
        )
    if fields["turns"] > 1:
        raise UsageError(
            "--turns make sessions of several requests, whose rate a sweep cannot set: leave it out."
        )
    series = Series(spec_of(**fields | {"concurrency": 1}), measuring, output)
    if sweeping:
        sweep.sweep(series)
    else:
        sweep.search(series)
    found = sweep.summarize_series(series.results)
    if output:
        write_text(output / SERIES, found.model_dump_json(indent=2) + "\n")
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        Console().print(render_series(found))
    return found.runs
