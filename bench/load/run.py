"""One load run, from the first look at the endpoint to the run folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns

from qdeploy.bench.load.arrivals import arrival_times
from qdeploy.bench.load.client import Client
from qdeploy.bench.load.discovery import look_up, negotiate
from qdeploy.bench.load.exchange import Exchange
from qdeploy.bench.load.metrics import summarize
from qdeploy.bench.load.outcome import Outcome, read_outcome
from qdeploy.bench.load.prompts import MEASURED, WARMUP, generator, local_vocabulary
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.table import write_requests
from qdeploy.bench.load.target import Target
from qdeploy.bench.records import Engine, LoadResult, RunRecord
from qdeploy.engines.endpoint import Endpoint, api_key_from_environment
from qdeploy.errors import EndpointError, disk_errors
from qdeploy.progress import progress
from qdeploy.provenance import provenance

OPENING_DELAY_NS = 50_000_000
"""Between fixing the schedule and its first request, so that no request is late by the time this takes."""

Tick = Callable[[], None]


@dataclass(frozen=True)
class Measurement:
    """A finished run: the figures, the requests behind them, and the endpoint as it was found."""

    result: LoadResult
    outcomes: list[Outcome]
    target: Target


def run_load(
    spec: LoadSpec, base_url: str, model: str | None = None, api_key: str | None = None
) -> LoadResult:
    """Put the load on the endpoint and return the figures. Raises as `measure`."""
    return measure(spec, base_url, model, api_key).result


def measure(
    spec: LoadSpec,
    base_url: str,
    model: str | None = None,
    api_key: str | None = None,
    tokenizer: Path | None = None,
) -> Measurement:
    """Look the endpoint up, warm it, put the load on it, wait for every answer, and compute the figures.

    A request that has not ended `spec.timeout_s` after its dispatch fails, so the run ends at most that long
    after the last one.

    Args:
        api_key: None reads QDEPLOY_API_KEY, then OPENAI_API_KEY.
        tokenizer: folder with the model's tokenizer.json, for endpoints without a /tokenize route.

    Raises:
        EndpointError: the endpoint cannot be used, or no request succeeded.
        UsageError: the lengths do not fit the served context, or `tokenizer` cannot be read.
    """
    api_key = api_key or api_key_from_environment()
    words = local_vocabulary(tokenizer) if tokenizer else None
    with Endpoint(base_url, model, api_key) as endpoint:
        target = look_up(endpoint, spec, words)
    return asyncio.run(_measure(spec, target, api_key))


def save(measurement: Measurement, spec: LoadSpec, output: Path, engine: Engine | None = None) -> RunRecord:
    """Write `requests.parquet` and `run.json` into `output`; `engine` if more is known than the URL tells."""
    target = measurement.target
    engine = engine or Engine(
        name="endpoint", version=target.version, base_url=target.base_url, model=target.model
    )
    record = RunRecord(
        kind="bench",
        name=output.name,
        provenance=provenance(),
        engine=engine,
        settings={
            **spec.model_dump(),
            "prompts": "token ids" if target.dialect.token_ids else "text",
            "route": target.dialect.path,
            "ignore_eos": target.dialect.ignore_eos,
        },
        load=measurement.result,
    )
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    write_requests(output / "requests.parquet", measurement.outcomes)
    record.save(output)
    return record


async def _measure(spec: LoadSpec, target: Target, api_key: str | None) -> Measurement:
    target = await negotiate(target, api_key, spec)
    async with Client(target.url, api_key, spec.timeout_s) as client:
        await _warm_up(client, spec, target)
        client.peak_in_flight = 0
        payloads = _payloads(target, spec, spec.requests, MEASURED)
        with progress("Load", spec.requests) as bar:
            exchanges = await _drive(client, spec, payloads, bar.advance)
    outcomes = [read_outcome(e, exchanges[0].scheduled_ns) for e in exchanges]
    result = summarize(spec, outcomes, client.peak_in_flight)
    if result.completed == 0:
        raise EndpointError(f"None of the {spec.requests} requests succeeded: {_reasons(outcomes)}")
    return Measurement(result, outcomes, target)


def _payloads(target: Target, spec: LoadSpec, count: int, stream: int) -> list[bytes]:
    rng = generator(spec.seed, spec.salt, stream)
    return target.payloads(count, spec.prompt_tokens, spec.output_tokens, rng)


async def _warm_up(client: Client, spec: LoadSpec, target: Target) -> None:
    payloads = _payloads(target, spec, spec.warmup, WARMUP)
    exchanges = await _closed_loop(client, payloads, min(spec.concurrency or spec.warmup, 8), lambda: None)
    outcomes = [read_outcome(e, 0) for e in exchanges]
    if outcomes and all(o.error for o in outcomes):
        raise EndpointError(f"Every warm-up request failed: {_reasons(outcomes)}")


async def _drive(client: Client, spec: LoadSpec, payloads: list[bytes], tick: Tick) -> list[Exchange]:
    if spec.concurrency:
        return await _closed_loop(client, payloads, spec.concurrency, tick)
    return await _open_loop(client, spec, payloads, tick)


async def _open_loop(client: Client, spec: LoadSpec, payloads: list[bytes], tick: Tick) -> list[Exchange]:
    """Dispatch every request when it is due, whatever became of the earlier ones."""
    start = monotonic_ns() + OPENING_DELAY_NS
    due = (start + arrival_times(spec.arrival, spec.rate or 0.0, len(payloads), spec.seed)).tolist()
    exchanges = [Exchange(index, scheduled_ns) for index, scheduled_ns in enumerate(due)]
    async with asyncio.TaskGroup() as group:
        for exchange, payload in zip(exchanges, payloads, strict=True):
            await asyncio.sleep((exchange.scheduled_ns - monotonic_ns()) / 1e9)
            group.create_task(client.send(exchange, payload)).add_done_callback(lambda _: tick())
    return exchanges


async def _closed_loop(client: Client, payloads: list[bytes], users: int, tick: Tick) -> list[Exchange]:
    """`users` users, each sending its next request when its last one has ended."""
    exchanges = [Exchange(index) for index in range(len(payloads))]
    waiting = iter(zip(exchanges, payloads, strict=True))

    async def user() -> None:
        for exchange, payload in waiting:
            exchange.scheduled_ns = monotonic_ns()
            await client.send(exchange, payload)
            tick()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(users, len(payloads))):
            group.create_task(user())
    return exchanges


def _reasons(outcomes: list[Outcome]) -> str:
    """Kinds of failure with an example of what the server said."""
    kinds = sorted({o.error for o in outcomes if o.error})
    detail = next((o.detail for o in outcomes if o.detail), None)
    return ", ".join(kinds) + (f" ({detail})" if detail else "") + "."
