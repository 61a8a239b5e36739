"""Figures from requests whose times are known."""

from __future__ import annotations

import pytest

from qdeploy.bench.load.figures.metrics import client_limited, summarize, time_per_output_token_ms
from qdeploy.bench.load.figures.outcome import Outcome
from qdeploy.bench.load.spec import LoadSpec

MS = 1_000_000


def request(
    index: int, *, lag: int = 0, ttft: int = 100, gap: int = 20, chunks: int = 5, per_chunk: int | None = 1
) -> Outcome:
    """Due at `index` seconds, sent `lag` ms late."""
    due = index * 1000 * MS
    sent = due + lag * MS
    times = [sent + (ttft + gap * i) * MS for i in range(chunks)]
    counts = [per_chunk] * chunks if per_chunk else None
    return Outcome(
        index=index,
        scheduled_ns=due,
        dispatched_ns=sent,
        sent_ns=sent,
        headers_ns=sent,
        end_ns=times[-1],
        first_token_ns=times[0],
        last_token_ns=times[-1],
        prompt_tokens=10,
        output_tokens=chunks * (per_chunk or 1),
        chunk_ns=times,
        chunk_tokens=counts,
    )


def failed(index: int, kind: str) -> Outcome:
    found = request(index, ttft=90_000)
    found.error = kind
    return found


OPEN = LoadSpec(rate=1.0, requests=10)


def test_known_answer() -> None:
    result = summarize(OPEN, [request(i) for i in range(10)], peak_in_flight=1)
    means = {name: found.mean for name, found in result.metrics.items()}
    assert means == {
        "ttft_ms": 100,
        "ttft_sched_ms": 100,
        "tpot_ms": 20,
        "itl_ms": 20,
        "e2e_ms": 180,
        "e2e_sched_ms": 180,
        "ntpot_ms": 36,
    }
    assert result.duration_s == pytest.approx(9.18)
    assert result.output_token_throughput == pytest.approx(50 / 9.18)
    assert result.achieved_rate == pytest.approx(1.0)
    assert not result.client_limited
    assert result.vllm_aliases["mean_ttft_ms"] == 100
    assert result.vllm_aliases["median_tpot_ms"] == 20
    assert "p99_ttft_ms" not in result.vllm_aliases


def test_chunks_of_several_tokens() -> None:
    result = summarize(OPEN, [request(i, per_chunk=4, gap=40) for i in range(10)], 1)
    assert result.metrics["tpot_ms"].mean == pytest.approx(160 / 16)
    assert result.metrics["itl_ms"].mean == pytest.approx(10)
    assert result.metrics["itl_ms"].count == 160
    assert result.tokens_per_chunk == 4


def test_gaps_are_between_chunks_if_one_answer_has_no_counts() -> None:
    result = summarize(OPEN, [request(0), request(1, per_chunk=None)], 1)
    assert result.metrics["icl_ms"].count == 8
    assert "itl_ms" not in result.metrics


def test_late_dispatch_shows_in_scheduled_times_only() -> None:
    result = summarize(OPEN, [request(i, lag=50) for i in range(10)], 1)
    assert result.metrics["ttft_ms"].mean == 100
    assert result.metrics["ttft_sched_ms"].mean == 150
    assert result.metrics["e2e_sched_ms"].mean == 230
    assert result.client_limited


def test_a_lag_that_is_small_beside_the_ttft_limits_nothing() -> None:
    assert not client_limited(OPEN, 30, 1.0, ttft_ms=1000)
    assert client_limited(OPEN, 30, 1.0, ttft_ms=500)


def test_wrong_rate_is_client_limited() -> None:
    result = summarize(LoadSpec(rate=1.02, requests=10), [request(i) for i in range(10)], 1)
    assert result.client_limited


def test_failures_are_counted_and_in_no_mean() -> None:
    outcomes = [request(0), failed(1, "timeout"), failed(2, "HTTP 503"), failed(3, "timeout")]
    result = summarize(OPEN, outcomes, 1)
    assert (result.completed, result.failed, result.errors) == (1, 3, {"timeout": 2, "HTTP 503": 1})
    assert result.metrics["ttft_ms"].mean == 100
    assert result.output_tokens == 5


def test_tpot_of_one_token_is_undefined_and_counted() -> None:
    assert time_per_output_token_ms(request(0, chunks=1)) is None
    result = summarize(OPEN, [request(0), request(1, chunks=1)], 1)
    assert (result.tpot_undefined, result.metrics["tpot_ms"].count) == (1, 1)


def test_closed_loop_has_no_schedule() -> None:
    spec = LoadSpec(concurrency=2, requests=10)
    result = summarize(spec, [request(i) for i in range(10)], 2)
    assert "ttft_sched_ms" not in result.metrics
    assert result.schedule_lag_p99_ms is None
    assert not result.client_limited
