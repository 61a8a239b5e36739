"""Runs that say more about the client than about the endpoint."""

from __future__ import annotations

from qdeploy.bench.load.client.ceiling import Ceiling
from qdeploy.bench.load.client.use import compare_in_flight, judge_client
from qdeploy.bench.load.figures.metrics import peak_in_flight, summarize
from qdeploy.bench.load.telemetry.telemetry import EngineSample
from qdeploy.bench.records import LoadResult
from tests.bench.load.test_metrics import MS, OPEN, request

START = 10**15
SEEN = ((-5, 0.0, 0.0), (100, 1.0, 1.0), (500, 0.0, None), (700, None, None), (1100, 1.0, 2.0))
"""Time in ms, what the engine then said to be running, and waiting."""


def judged(ceiling: Ceiling, *, lag: int = 0, processes: int = 1, busy: float = 0.1) -> LoadResult:
    """Ten requests of five events within 9.18 s."""
    outcomes = [request(i, lag=lag) for i in range(10)]
    result = summarize(OPEN, outcomes, 1)
    judge_client(result, ceiling, outcomes, processes, busy)
    return result


def test_a_client_with_room_to_spare() -> None:
    found = judged(Ceiling(0.01, 0.001))
    assert found.client
    assert abs(found.client.share - (10 * 0.01 + 50 * 0.001) / 9.18) < 1e-9
    assert (found.client_limited, found.invalid) == (False, [])


def test_beyond_half_of_the_ceiling_a_run_is_invalid_and_another_process_helps() -> None:
    found = judged(Ceiling(0.4, 0.02))
    assert found.client_limited
    assert "at 54% of its own ceiling" in found.invalid[0]
    assert judged(Ceiling(0.4, 0.02), processes=2).invalid == []


def test_processor_time_that_no_self_test_foresaw_counts_too() -> None:
    assert "at 60% of its own ceiling" in judged(Ceiling(0.001, 0.001), busy=0.6).invalid[0]


def test_a_late_client_is_invalid_whatever_its_ceiling() -> None:
    found = judged(Ceiling(0.001, 0.001), lag=50)
    assert found.client_limited
    assert "50.0 ms late at p99" in found.invalid[0]
    assert found.schedule_lag_p50_ms == 50


def test_in_flight_when_the_engine_was_asked() -> None:
    outcomes = [request(0), request(0), request(1)]  # each 180 ms from its second on
    samples = [EngineSample(START + ms * MS, running, waiting) for ms, running, waiting in SEEN]
    use = judged(Ceiling(0.01, 0.001)).client
    assert use
    compare_in_flight(use, outcomes, samples, START)
    assert use.in_flight == (0 + 2 + 0 + 1) / 4
    assert use.engine_in_flight == (0 + 2 + 0 + 3) / 4


def test_peak_in_flight() -> None:
    one, two, three = request(0), request(0), request(0)
    two.dispatched_ns, two.end_ns = one.end_ns, one.end_ns + 5
    three.dispatched_ns, three.end_ns = one.end_ns - 1, one.end_ns + 1
    assert peak_in_flight([one, two]) == 1
    assert peak_in_flight([one, two, three]) == 2
