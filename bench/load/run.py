"""One load run, from the first look at the endpoint to the run folder."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, monotonic_ns, thread_time
from typing import Any

from qdeploy import catalogue
from qdeploy.bench.load.client import event_loop
from qdeploy.bench.load.client.ceiling import Ceiling, measure_ceiling
from qdeploy.bench.load.client.client import Client
from qdeploy.bench.load.client.dispatch import (
    INTERRUPTED,
    Tick,
    closed_loop,
    no_garbage_collection,
    open_loop,
    until_interrupted,
)
from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.client.use import compare_in_flight, judge_client, processes_needed
from qdeploy.bench.load.client.workers import Sent, ready_workers, send, split
from qdeploy.bench.load.figures.assess import assess
from qdeploy.bench.load.figures.metrics import peak_in_flight, summarize
from qdeploy.bench.load.figures.outcome import Outcome, read_outcome
from qdeploy.bench.load.figures.table import write_requests, write_telemetry
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.telemetry.live import Live, LiveWorkers
from qdeploy.bench.load.telemetry.telemetry import EngineSample, Watch
from qdeploy.bench.load.workload.discovery import look_up, negotiate
from qdeploy.bench.load.workload.prompts import WARMUP, generator, local_vocabulary
from qdeploy.bench.load.workload.target import Target
from qdeploy.bench.load.workload.workload import Workload, build
from qdeploy.bench.records import Engine, LoadResult, RunRecord
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.transport import api_key_from_environment
from qdeploy.errors import EndpointError, disk_errors
from qdeploy.progress import progress
from qdeploy.provenance import provenance

OPENING_DELAY_NS = 50_000_000
"""Between fixing the schedule and its first request, so that no request is late by the time this takes."""


@dataclass(frozen=True)
class Measurement:
    """A run: the figures, the requests behind them, the endpoint as it was found, what it said of itself."""

    result: LoadResult
    outcomes: list[Outcome]
    target: Target
    start_ns: int
    samples: list[EngineSample]


def measure(
    spec: LoadSpec,
    base_url: str,
    model: str | None = None,
    api_key: str | None = None,
    tokenizer: Path | None = None,
) -> Measurement:
    """Look the endpoint up, warm it, put the load on it, wait for every answer, and compute the figures.

    A request that has not ended `spec.timeout_s` after its dispatch fails, so the run ends at most that long
    after the last one. Ctrl-C ends it too: the figures are then of the requests that had ended. A server that
    dies meanwhile fails the rest: the run is marked `lost`. Where the spec sets a salt, the same prompts may
    have been sent before: the server is asked to forget them.

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
        measured = event_loop.run(_measure(spec, target, api_key, endpoint.is_local, measure_ceiling()))
        if measured.result.failed and not endpoint.answers():
            _mark_lost(measured.result)
    return measured


def _mark_lost(result: LoadResult) -> None:
    result.lost = True
    result.invalid.append(
        f"the endpoint does not answer any more: {result.failed} of {result.requests} requests failed"
    )


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
    catalogue.record(output)
    return record


async def _measure(
    spec: LoadSpec, target: Target, api_key: str | None, local: bool, ceiling: Ceiling
) -> Measurement:
    target = await negotiate(target, api_key, spec)
    workload = build(spec, target)
    warm = await _warm_up(spec, target, api_key)
    processes = processes_needed(ceiling, spec, workload, warm)
    watch = Watch(target.base_url, target.model, api_key, local)
    if processes > 1:
        sent = await _send_by_workers(spec, target, workload, api_key, watch, processes)
    else:
        sent = await _send(spec, target, workload, api_key, watch)
    if sent.interrupted and not sent.outcomes:
        raise KeyboardInterrupt
    result = summarize(spec, sent.outcomes, peak_in_flight(sent.outcomes))
    if result.completed == 0:
        raise EndpointError(f"None of the {len(sent.outcomes)} requests succeeded: {_reasons(sent.outcomes)}")
    result.interrupted = sent.interrupted
    use = judge_client(result, ceiling, sent.outcomes, processes, sent.busy)
    compare_in_flight(use, sent.outcomes, watch.samples, sent.start_ns)
    assess(result, spec, target, workload, sent.outcomes, watch.telemetry())
    return Measurement(result, sent.outcomes, target, sent.start_ns, watch.samples)


async def _warm_up(spec: LoadSpec, target: Target, api_key: str | None) -> list[Outcome]:
    rng = generator(spec.seed, spec.salt, WARMUP)
    payloads = target.payloads(spec.warmup, spec.prompt_tokens, spec.output_tokens, rng)
    singly = [range(i, i + 1) for i in range(spec.warmup)]
    users = min(spec.concurrency or spec.warmup, 8)
    exchanges = [Exchange(index) for index in range(spec.warmup)]
    async with Client(target.url, api_key, spec.timeout_s) as client:
        await closed_loop(client, payloads, exchanges, singly, users, lambda _: None)
    outcomes = [read_outcome(e, 0, spec.stream) for e in exchanges]
    if outcomes and all(o.error for o in outcomes):
        raise EndpointError(f"Every warm-up request failed: {_reasons(outcomes)}")
    return outcomes


async def _send(
    spec: LoadSpec, target: Target, workload: Workload, api_key: str | None, watch: Watch
) -> Sent:
    """Put the whole workload on the endpoint from this process."""
    exchanges = [Exchange(index) for index in range(len(workload.payloads))]
    async with Client(target.url, api_key, spec.timeout_s) as client:
        with watch, progress("Load", len(exchanges)) as bar, no_garbage_collection():
            cpu, wall = thread_time(), monotonic()
            load = _load(client, spec, workload, exchanges, Live(bar, client).ended)
            interrupted = await until_interrupted(load)
            busy = (thread_time() - cpu) / (monotonic() - wall)
    start_ns = exchanges[0].scheduled_ns
    ended = [e for e in exchanges if e.end_ns and e.error != INTERRUPTED]
    outcomes = [read_outcome(e, start_ns, spec.stream) for e in ended]
    return Sent(outcomes, start_ns, busy, interrupted)


async def _send_by_workers(
    spec: LoadSpec, target: Target, workload: Workload, api_key: str | None, watch: Watch, processes: int
) -> Sent:
    parts = split(workload, target, spec.timeout_s, spec.concurrency or 1, processes)
    async with ready_workers(parts, api_key) as workers:
        with watch, progress("Load", len(workload.payloads)) as bar:
            return await send(workers, LiveWorkers(bar).update)


def _load(
    client: Client, spec: LoadSpec, workload: Workload, exchanges: list[Exchange], tick: Tick
) -> Coroutine[Any, Any, None]:
    if workload.due_ns is None:
        users = spec.concurrency or 1
        return closed_loop(client, workload.payloads, exchanges, workload.sessions, users, tick)
    start_ns = monotonic_ns() + OPENING_DELAY_NS
    return open_loop(client, workload.payloads, exchanges, workload.sessions, workload.due_ns, start_ns, tick)


def _reasons(outcomes: list[Outcome]) -> str:
    """Kinds of failure with an example of what the server said."""
    kinds = sorted({o.error for o in outcomes if o.error})
    detail = next((o.detail for o in outcomes if o.detail), None)
    return ", ".join(kinds) + (f" ({detail})" if detail else "") + "."
