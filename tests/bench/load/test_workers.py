"""Loads that several processes send together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qdeploy.bench.load.client import ceiling as ceilings
from qdeploy.bench.load.client.ceiling import Ceiling, measure_ceiling
from qdeploy.bench.load.client.mock_server import Pace, mock_server
from qdeploy.bench.load.client.use import processes_needed
from qdeploy.bench.load.client.worker import read_part
from qdeploy.bench.load.client.workers import Sent, Worker, ready_workers, send, split
from qdeploy.bench.load.run import measure
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.workload.dialect import Dialect
from qdeploy.bench.load.workload.target import Target
from qdeploy.bench.load.workload.workload import Workload, build
from qdeploy.errors import QDeployError
from tests.bench.load.server import Server
from tests.bench.load.test_metrics import request

Disturb = Callable[[asyncio.Task[Sent], list[Worker]], None]
OPEN = LoadSpec(rate=40.0, requests=30, prompt_tokens=4, output_tokens=10)


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with mock_server(Pace(first_token_s=0.05, gap_s=0.01)) as url:
        yield Target(url, "mock", None, Dialect(token_ids=False))


def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.mark.parametrize("spec", [OPEN, LoadSpec(concurrency=5, requests=30)])
def test_parts_are_the_whole_once(spec: LoadSpec, target: Target, tmp_path: Path) -> None:
    workload = build(spec, target)
    workload = replace(workload, sessions=[range(i, i + 3) for i in range(0, 30, 3)], due_ns=np.arange(10))
    parts = split(workload, target, 5.0, spec.concurrency or 1, 3)
    assert sorted(index for part in parts for index in part.indices) == list(range(30))
    assert sorted(due for part in parts for due in part.due_ns or []) == list(range(10))
    assert sum(part.users for part in parts) == (spec.concurrency or 1)
    for part in parts:
        assert part.payloads == [workload.payloads[index] for index in part.indices]
        part.write(tmp_path)
        assert read_part(tmp_path) == part


def test_workers_keep_one_schedule(monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    monkeypatch.setattr(ceilings, "MAX_SHARE", 1e-9)
    two_processors(monkeypatch)
    found = measure(OPEN, target.base_url)
    assert found.result.client
    assert found.result.client.processes == 2
    assert (found.result.completed, found.result.output_tokens) == (30, 300)
    assert [o.index for o in found.outcomes] == list(range(30))
    due = [o.scheduled_ns for o in found.outcomes]
    assert due == build(OPEN, target).due_ns.tolist()  # type: ignore[union-attr]
    assert all(o.dispatched_ns >= o.scheduled_ns for o in found.outcomes)
    assert found.result.telemetry and found.result.telemetry.running


def test_users_are_shared_out(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setattr(ceilings, "MAX_SHARE", 1e-9)
    monkeypatch.setenv("QDEPLOY_API_KEY", "key")
    two_processors(monkeypatch)
    server.behaviour.first_token_s, server.behaviour.api_key = 0.05, "key"
    found = measure(LoadSpec(concurrency=5, requests=20, prompt_tokens=4, output_tokens=2), server.url)
    assert (found.result.completed, found.result.peak_in_flight, server.peak_in_flight) == (20, 5, 5)


async def sent_by(target: Target, disturb: Disturb) -> Sent:
    """4000 requests, disturbed when the first have ended."""
    spec, some_ended = OPEN.model_copy(update={"requests": 4000}), asyncio.Event()
    async with ready_workers(split(build(spec, target), target, 30.0, 1, 2), None) as workers:
        sending = asyncio.create_task(send(workers, lambda ended, *_: some_ended.set() if ended else None))
        await some_ended.wait()
        disturb(sending, workers)
        return await sending


async def test_ctrl_c_yields_what_has_ended(target: Target) -> None:
    def interrupt(sending: asyncio.Task[Sent], _: list[Worker]) -> None:
        sending.cancel()

    found = await sent_by(target, interrupt)
    assert found.interrupted
    assert 0 < len(found.outcomes) < 4000
    assert all(o.error is None and o.output_tokens == 10 for o in found.outcomes)


async def test_a_worker_that_dies_ends_the_run(target: Target) -> None:
    def kill(_: asyncio.Task[Sent], workers: list[Worker]) -> None:
        workers[1].process.kill()

    with pytest.raises(QDeployError, match="ended with exit code -9"):
        await sent_by(target, kill)


def test_the_ceiling_is_what_events_and_requests_cost() -> None:
    found = measure_ceiling()
    assert 0 < found.per_event_s < 1e-3
    assert found.requests_per_s < found.events_per_s


def test_processes_keep_below_half_of_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    two_processors(monkeypatch)
    ceiling = Ceiling(per_request_s=1e-4, per_event_s=1e-5)
    assert ceiling.share(1000, 40_000) == pytest.approx(0.5)
    assert [ceiling.processes(r, 40 * r) for r in (10, 999, 1001, 9000)] == [1, 1, 2, 2]


def test_processes_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    two_processors(monkeypatch)
    ceiling, hundred = Ceiling(1e-4, 1e-5), [range(i, i + 1) for i in range(101)]
    workload = Workload([b""] * 101, hundred, np.arange(101) * 900_000, "", output_tokens=101 * 40)
    assert processes_needed(ceiling, OPEN, workload, []) == 2
    assert processes_needed(ceiling, OPEN, replace(workload, due_ns=2 * workload.due_ns), []) == 1  # type: ignore[operator]
    users = replace(workload, due_ns=None)
    warm = [request(i, ttft=100, gap=100, chunks=10) for i in range(4)]  # a second each
    assert processes_needed(ceiling, LoadSpec(concurrency=990), users, warm) == 1
    assert processes_needed(ceiling, LoadSpec(concurrency=1010), users, warm) == 2
    assert processes_needed(ceiling, LoadSpec(concurrency=1010), users, []) == 1
    fast = [request(i, ttft=0, gap=0, chunks=10) for i in range(4)]
    assert processes_needed(ceiling, LoadSpec(concurrency=1), users, fast) == 1
