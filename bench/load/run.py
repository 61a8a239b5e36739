"""One load run, from the first look at the endpoint to the run folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.load.assess import assess
from qdeploy.bench.load.client import Client
from qdeploy.bench.load.discovery import look_up, negotiate
from qdeploy.bench.load.exchange import Exchange
from qdeploy.bench.load.live import Live
from qdeploy.bench.load.metrics import summarize
from qdeploy.bench.load.outcome import Outcome, read_outcome
from qdeploy.bench.load.prompts import WARMUP, generator, local_vocabulary
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.table import write_requests, write_telemetry
from qdeploy.bench.load.target import Target
from qdeploy.bench.load.telemetry import EngineSample, Watch
from qdeploy.bench.load.workload import Workload, build
from qdeploy.bench.records import Engine, LoadResult, RunRecord
from qdeploy.engines.endpoint import Endpoint, api_key_from_environment
from qdeploy.errors import EndpointError, disk_errors
from qdeploy.progress import progress
from qdeploy.provenance import provenance

OPENING_DELAY_NS = 50_000_000
"""Between fixing the schedule and its first request, so that no request is late by the time this takes."""

INTERRUPTED = "interrupted"
"""The error of a request that Ctrl-C cut off; it is in no figure."""

Tick = Callable[[Exchange], None]


@dataclass(frozen=True)
class Measurement:
    """A run: the figures, the requests behind them, the endpoint as it was found, what it said of itself."""

    result: LoadResult
    outcomes: list[Outcome]
    target: Target
    start_ns: int
    samples: list[EngineSample]


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
    after the last one. Ctrl-C ends it too: the figures are then of the requests that had ended. Where the
    spec sets a salt, the same prompts may have been sent before: the server is asked to forget them.

    Args:
        api_key: None reads QDEPLOY_API_KEY, then OPENAI_API_KEY.
        tokenizer: folder with the model's tokenizer.json, for endpoints without a /tokenize route.

    Raises:
        EndpointError: the endpoint cannot be used, or no request succeeded.
        UsageError: the lengths do not fit the served context, or a file cannot be read.
        KeyboardInterrupt: Ctrl-C before any request had ended.
    """
    api_key = api_key or api_key_from_environment()
    words = local_vocabulary(tokenizer) if tokenizer else None
    with Endpoint(base_url, model, api_key) as endpoint:
        target = look_up(endpoint, spec, words)
        if "salt" in spec.model_fields_set:
            endpoint.reset_prefix_cache()
    return asyncio.run(_measure(spec, target, api_key, endpoint.is_local))


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
            **spec.model_dump(mode="json"),
            "prompts": "token ids" if target.dialect.token_ids else "text",
            "route": target.dialect.path,
            "ignore_eos": target.dialect.extensions and spec.ignore_eos,
        },
        load=measurement.result,
    )
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    write_requests(output / "requests.parquet", measurement.outcomes)
    if measurement.samples:
        write_telemetry(output / "telemetry.parquet", measurement.samples, measurement.start_ns)
    record.save(output)
    return record


async def _measure(spec: LoadSpec, target: Target, api_key: str | None, local: bool) -> Measurement:
    target = await negotiate(target, api_key, spec)
    workload = build(spec, target)
    exchanges = [Exchange(index) for index in range(len(workload.payloads))]
    async with Client(target.url, api_key, spec.timeout_s) as client:
        await _warm_up(client, spec, target)
        client.peak_in_flight = 0
        watch = Watch(target.base_url, target.model, api_key, local)
        with watch, progress("Load", len(exchanges)) as bar:
            live = Live(bar, client)
            interrupted = await _until_interrupted(_drive(client, spec, workload, exchanges, live.ended))
    ended = [e for e in exchanges if e.end_ns and e.error != INTERRUPTED]
    if interrupted and not ended:
        raise KeyboardInterrupt
    outcomes = [read_outcome(e, exchanges[0].scheduled_ns, spec.stream) for e in ended]
    result = summarize(spec, outcomes, client.peak_in_flight)
    if result.completed == 0:
        raise EndpointError(f"None of the {len(outcomes)} requests succeeded: {_reasons(outcomes)}")
    result.interrupted = interrupted
    assess(result, spec, target, workload, outcomes, watch.telemetry())
    return Measurement(result, outcomes, target, exchanges[0].scheduled_ns, watch.samples)


async def _until_interrupted(work: Coroutine[Any, Any, None]) -> bool:
    """Await `work`; whether Ctrl-C ended it. asyncio turns the first Ctrl-C into a cancellation."""
    try:
        await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return True
    return False


async def _warm_up(client: Client, spec: LoadSpec, target: Target) -> None:
    rng = generator(spec.seed, spec.salt, WARMUP)
    payloads = target.payloads(spec.warmup, spec.prompt_tokens, spec.output_tokens, rng)
    singly = [range(i, i + 1) for i in range(spec.warmup)]
    users = min(spec.concurrency or spec.warmup, 8)
    exchanges = [Exchange(index) for index in range(spec.warmup)]
    await _closed_loop(client, payloads, exchanges, singly, users, lambda _: None)
    outcomes = [read_outcome(e, 0, spec.stream) for e in exchanges]
    if outcomes and all(o.error for o in outcomes):
        raise EndpointError(f"Every warm-up request failed: {_reasons(outcomes)}")


async def _drive(
    client: Client, spec: LoadSpec, workload: Workload, exchanges: list[Exchange], tick: Tick
) -> None:
    if workload.due_ns is None:
        users = spec.concurrency or 1
        await _closed_loop(client, workload.payloads, exchanges, workload.sessions, users, tick)
    else:
        await _open_loop(client, workload.payloads, exchanges, workload.sessions, workload.due_ns, tick)


async def _open_loop(
    client: Client,
    payloads: list[bytes],
    exchanges: list[Exchange],
    sessions: list[range],
    due_ns: NDArray[np.int64],
    tick: Tick,
) -> None:
    """Begin every session when it is due, whatever became of the earlier ones."""
    start = monotonic_ns() + OPENING_DELAY_NS
    async with asyncio.TaskGroup() as group:
        for session, due in zip(sessions, (start + due_ns).tolist(), strict=True):
            await asyncio.sleep((due - monotonic_ns()) / 1e9)
            group.create_task(_converse(client, payloads, exchanges, session, due, tick))


async def _closed_loop(
    client: Client,
    payloads: list[bytes],
    exchanges: list[Exchange],
    sessions: list[range],
    users: int,
    tick: Tick,
) -> None:
    """`users` users, each beginning its next session when its last one has ended."""
    waiting = iter(sessions)

    async def user() -> None:
        for session in waiting:
            await _converse(client, payloads, exchanges, session, monotonic_ns(), tick)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(users, len(sessions))):
            group.create_task(user())


async def _converse(
    client: Client, payloads: list[bytes], exchanges: list[Exchange], session: range, due_ns: int, tick: Tick
) -> None:
    """Send the requests of a session one after another; each but the first is due when the last one ended."""
    for index in session:
        exchange = exchanges[index]
        exchange.scheduled_ns = due_ns
        try:
            await client.send(exchange, payloads[index])
        except asyncio.CancelledError:
            exchange.error = INTERRUPTED
            raise
        tick(exchange)
        due_ns = exchange.end_ns


def _reasons(outcomes: list[Outcome]) -> str:
    """Kinds of failure with an example of what the server said."""
    kinds = sorted({o.error for o in outcomes if o.error})
    detail = next((o.detail for o in outcomes if o.detail), None)
    return ", ".join(kinds) + (f" ({detail})" if detail else "") + "."
