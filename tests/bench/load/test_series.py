"""Sweeps and searches on a server whose capacity is known."""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qdeploy.bench.load.figures.metrics import summarize
from qdeploy.bench.load.figures.outcome import Outcome
from qdeploy.bench.load.figures.steady import steady_window
from qdeploy.bench.load.run import Measurement, measure
from qdeploy.bench.load.series import sweep as module
from qdeploy.bench.load.series.series import Series
from qdeploy.bench.load.series.sweep import (
    capacity,
    completion_rate,
    saturated,
    search,
    summarize_series,
    sweep,
)
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.workload.arrivals import arrival_times
from qdeploy.bench.records import Estimate, LoadResult, SloResult, SteadyWindow
from qdeploy.errors import EndpointError, Interrupted, OutputError, UsageError
from tests.bench.load.server import Server
from tests.bench.load.test_metrics import request

CAPACITY = 100.0
"""Two requests at once, of 20 ms each."""


@pytest.fixture
def slow(server: Server) -> Server:
    server.behaviour.slots, server.behaviour.first_token_s = 2, 0.02
    return server


def template(**options: object) -> LoadSpec:
    defaults = {
        "concurrency": 1,
        "arrival": "constant",
        "requests": 30,
        "prompt_tokens": 16,
        "output_tokens": 2,
        "warmup": 0,
    }
    return LoadSpec.model_validate(defaults | options)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_the_fit_finds_the_capacity(noise: float) -> None:
    rng = np.random.default_rng(0)
    offered = [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0]
    completed = np.minimum(offered, 9.0) * np.exp(noise * rng.normal(size=7))
    assert capacity(offered, completed.tolist()) == pytest.approx(9.0, rel=1e-9 + noise)


def test_of_an_endpoint_that_keeps_up_the_capacity_is_the_highest_rate() -> None:
    assert capacity([1, 2, 3], [1, 2, 3]) == pytest.approx(3)
    assert capacity([3], [2]) == pytest.approx(2)


def run_at(rate: float, completed: float) -> LoadResult:
    """A run at `rate` of which `completed` requests a second came back."""
    result = summarize(LoadSpec(rate=rate, requests=10), [request(i) for i in range(10)], 1)
    assert result.steady is None
    result.request_throughput = completed
    return result


@pytest.mark.parametrize(("completed", "much"), [(57, False), (55, False), (50, True)])
def test_saturated_is_less_than_chance_leaves(completed: int, much: bool) -> None:
    """Of 60 requests 58 come in the window, give or take three, and the last cannot be completed in it."""
    assert saturated(run_of_60(completed, end_s=2 + 59 * 58 / completed)) is much


@pytest.mark.parametrize(
    ("completed", "end_s", "rate"),
    [(57, 500, 57 / 58), (20, 120, 59 / 118), (20, 40, 1.0)],
    ids=["a straggler", "late answers", "no more than offered"],
)
def test_completions_of_a_run(completed: int, end_s: float, rate: float) -> None:
    assert completion_rate(run_of_60(completed, end_s)) == pytest.approx(rate)


@pytest.mark.parametrize("use", [0.6, 0.8, 1.2, 1.5, 2.0])
def test_completions_of_an_engine_that_shares_itself_among_all(use: float) -> None:
    """Ten requests a second, each 0.6 s alone: below that all that come complete, above it ten."""
    arrivals = arrival_times("poisson", 10 * use, 200, 0) / 1e9
    ends = shared(arrivals, rate=10.0, alone=0.6)
    outcomes = [served(i, *times) for i, times in enumerate(zip(arrivals, ends, strict=True))]
    result = summarize(LoadSpec(rate=10 * use, requests=200), outcomes, 1)
    result.steady = steady_window(outcomes, None)
    assert completion_rate(result) == pytest.approx(min(10 * use, 10.0), rel=0.1)
    assert saturated(result) is (use > 1)


def shared(arrivals: NDArray[np.float64], rate: float, alone: float) -> NDArray[np.float64]:
    """When each request ends, seconds, of a server that does `rate` of them a second, all equally fast."""
    ends, left, now, waiting = np.zeros_like(arrivals), dict[int, float](), 0.0, deque(enumerate(arrivals))
    while waiting or left:
        speed = min(1 / alone, rate / len(left)) if left else 0.0
        index = min(left, key=left.__getitem__, default=-1)
        end = now + left[index] / speed if left else math.inf
        then = min(end, waiting[0][1] if waiting else math.inf)
        left = {each: work - speed * (then - now) for each, work in left.items()}
        now = then
        if now == end:
            ends[index] = now
            del left[index]
        else:
            left[waiting.popleft()[0]] = 1.0
    return ends


def served(index: int, arrival: float, end: float) -> Outcome:
    sent, ended = round(arrival * 1e9), round(end * 1e9)
    return replace(request(index), scheduled_ns=sent, dispatched_ns=sent, sent_ns=sent, end_ns=ended)


def run_of_60(completed: int, end_s: float) -> LoadResult:
    """A run at one request a second: so many end in its window of 58 seconds, the last at `end_s`."""
    result = summarize(LoadSpec(rate=1, requests=60), [request(i) for i in range(60)], 1)
    result.duration_s = end_s
    result.steady = SteadyWindow(
        start_s=2, end_s=60, requests=completed, request_throughput=completed / 58, output_token_throughput=1
    )
    return result


def test_the_knee_lies_between_a_rate_that_is_kept_and_one_that_is_not() -> None:
    seen = {2.0: 2.0, 4.0: 2.9, 6.0: 6.0, 8.0: 8.3, 10.0: 8.9, 12.0: 9.0}
    found = summarize_series({rate: run_at(rate, completed) for rate, completed in seen.items()})
    assert found.kept_rate == 8, "the stall at 4/s is no limit: more was kept"
    assert found.saturating_rate == 10
    assert 8 < found.capacity < 10
    kept = summarize_series({rate: run_at(rate, rate) for rate in (1.0, 2.0)})
    assert (kept.capacity, kept.kept_rate, kept.saturating_rate) == (pytest.approx(2), 2, None)


def test_a_saturated_endpoint_keeps_no_objective_however_short_its_run() -> None:
    seen = {2.0: 2.0, 4.0: 4.0, 6.0: 4.5, 8.0: 4.5}
    results = {rate: run_at(rate, completed) for rate, completed in seen.items()}
    for result in results.values():
        one = Estimate(value=1.0)
        result.slo = SloResult(limits=[], met=True, verdict="pass", good_share=one, goodput=one)
    assert summarize_series(results).best_rate == 4


def test_sweep_ends_beyond_the_capacity(slow: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRACTIONS", (0.3, 0.6, 0.9))
    series = Series(template(), lambda spec: measure(spec, slow.url))
    sweep(series)
    found = summarize_series(series.results)
    assert found.saturating_rate is not None
    assert found.kept_rate is not None
    assert found.kept_rate < found.saturating_rate
    # Sleeps are never shorter than programmed, and a busy machine makes them longer.
    assert 0.4 * CAPACITY < found.capacity <= 1.05 * CAPACITY
    assert [run.rate for run in found.runs] == sorted(series.results)
    hashes = {run.prompts_sha256 for run in found.runs}
    assert len(hashes) == len(found.runs), "each rate has prompts of its own"
    assert found.best_rate is None


def test_search_finds_a_rate_below_the_capacity(slow: Server) -> None:
    series = Series(template(slo="p90_ttft=150ms"), lambda spec: measure(spec, slow.url))
    search(series)
    found = summarize_series(series.results)
    assert found.best_rate is not None
    assert 0.2 * CAPACITY < found.best_rate < 1.2 * CAPACITY, (
        "30 requests queue for less than 150 ms above it"
    )
    missed = [
        run.rate for run in found.runs if run.rate and (saturated(run) or not (run.slo and run.slo.met))
    ]
    assert missed and found.best_rate < max(missed)


def test_an_objective_that_cannot_be_met(slow: Server) -> None:
    series = Series(template(slo="p50_ttft=1ms", requests=6), lambda spec: measure(spec, slow.url))
    with pytest.raises(EndpointError, match=r"one after another, 6 of 6 over p50_ttft=1ms"):
        search(series)


def test_an_objective_that_so_few_requests_cannot_break(slow: Server) -> None:
    series = Series(template(slo="p50_ttft=9s", requests=6), lambda spec: measure(spec, slow.url))
    with pytest.raises(UsageError, match=r"All 6 requests at once meet the objective.*--num-requests"):
        search(series)


def test_a_series_goes_on_where_it_was_interrupted(server: Server, tmp_path: Path) -> None:
    def once(spec: LoadSpec) -> Measurement:
        found = measure(spec, server.url)
        found.result.interrupted = spec.rate == 60
        return found

    first = Series(template(requests=4), once, tmp_path / "s")
    before = first.at(50)
    with pytest.raises(Interrupted, match=r"in the run rate-60\. The same command goes on from .*s\."):
        first.at(60)
    sent = len(server.payloads)
    again = Series(template(requests=4), lambda spec: measure(spec, server.url), tmp_path / "s")
    assert again.at(50.0) == before
    assert len(server.payloads) == sent
    assert again.at(60).requests == 4
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"settings.json", "rate-50", "rate-60"}
    salts = {
        json.loads((tmp_path / "s" / f"rate-{r}" / "run.json").read_text())["settings"]["salt"]
        for r in (50, 60)
    }
    assert len(salts) == 2


def test_a_folder_of_another_series_or_of_something_else_is_refused(server: Server, tmp_path: Path) -> None:
    def make(spec: LoadSpec) -> Measurement:
        return measure(spec, server.url)

    Series(template(), make, tmp_path / "s")
    with pytest.raises(OutputError, match=r"other settings \(output_tokens 2 → 3, requests 30 → 41\)"):
        Series(template(output_tokens=3, requests=41), make, tmp_path / "s")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="in use"):
        Series(template(), make, tmp_path)
