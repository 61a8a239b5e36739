"""From measured requests to the figures of a load run (definitions: docs/metrics.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from qdeploy.bench.load.figures.outcome import Outcome
from qdeploy.bench.load.figures.percentiles import distribution
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.records import Distribution, LoadResult

MAX_LAG_MS = 10.0
MAX_LAG_SHARE = 0.05
"""Of the mean TTFT: what is late by less than both limits changes no figure that a reader would act on."""

MAX_RATE_ERROR = 0.01


def summarize(spec: LoadSpec, outcomes: Sequence[Outcome], peak_in_flight: int) -> LoadResult:
    """The figures of one run; failed requests count as failures and in nothing else."""
    done = [o for o in outcomes if o.error is None]
    duration = (max(o.end_ns for o in outcomes) - min(o.dispatched_ns for o in outcomes)) / 1e9
    output_tokens = sum(o.output_tokens or 0 for o in done)
    chunks = sum(len(o.chunk_ns) for o in done)
    lag = None if spec.mode == "closed" else _lag_ms(outcomes, 0.99)
    rate = _dispatch_rate(outcomes)
    metrics = latencies(spec, done)
    result = LoadResult(
        arrival=spec.mode,
        rate=spec.mean_rate or (None if spec.concurrency else _scheduled_rate(outcomes)),
        concurrency=spec.concurrency,
        prompt_tokens_asked=spec.prompt_tokens,
        output_tokens_asked=spec.output_tokens,
        seed=spec.seed,
        requests=len(outcomes),
        completed=len(done),
        failed=len(outcomes) - len(done),
        errors=dict(Counter(o.error for o in outcomes if o.error).most_common()),
        duration_s=duration,
        achieved_rate=rate,
        input_tokens=sum(o.prompt_tokens or 0 for o in done),
        output_tokens=output_tokens,
        request_throughput=len(done) / duration,
        output_token_throughput=output_tokens / duration,
        peak_in_flight=peak_in_flight,
        schedule_lag_p50_ms=None if lag is None else _lag_ms(outcomes, 0.5),
        schedule_lag_p99_ms=lag,
        client_limited=lag is not None and client_limited(spec, lag, rate, _first(metrics).mean),
        tokens_per_chunk=output_tokens / chunks if chunks else None,
        tpot_undefined=len(done) - metrics["tpot_ms"].count if spec.stream else 0,
        metrics=metrics,
    )
    result.vllm_aliases = vllm_aliases(result)
    return result


def peak_in_flight(outcomes: Sequence[Outcome]) -> int:
    """Most requests at once between dispatch and end, where one may end as the next begins."""
    changes = [(o.end_ns, -1) for o in outcomes] + [(o.dispatched_ns, 1) for o in outcomes]
    return max(accumulate(change for _, change in sorted(changes)))


def latencies(spec: LoadSpec, done: Sequence[Outcome]) -> dict[str, Distribution]:
    """Every latency in ms. Scheduled-time ones only in an open loop: a closed loop has no schedule."""
    values = request_latencies(done, scheduled=spec.mode != "closed", streamed=spec.stream)
    found = {key: distribution(ms) for key, ms in values.items()}
    gaps = pooled_gaps(done) if spec.stream else {}
    return found | {key: distribution(ms, independent=False) for key, ms in gaps.items()}


def request_latencies(done: Sequence[Outcome], scheduled: bool, streamed: bool) -> dict[str, list[float]]:
    """The latencies of which a completed request has one, in ms; some only if `scheduled` or `streamed`."""
    found = {
        "e2e_ms": [_ms(o.last_token_ns, o.sent_ns) for o in done],
        "ntpot_ms": [_ms(o.last_token_ns, o.sent_ns) / (o.output_tokens or 1) for o in done],
    }
    if scheduled:
        found["e2e_sched_ms"] = [_ms(o.last_token_ns, o.scheduled_ns) for o in done]
    if streamed:
        found["ttft_ms"] = [_ms(o.first_token_ns, o.sent_ns) for o in done]
        found["tpot_ms"] = [t for o in done if (t := time_per_output_token_ms(o)) is not None]
    if scheduled and streamed:
        found["ttft_sched_ms"] = [_ms(o.first_token_ns, o.scheduled_ns) for o in done]
    return found


def pooled_gaps(done: Sequence[Outcome]) -> dict[str, list[float]]:
    """The gaps inside all answers, in ms: between tokens if every answer tells its counts, else chunks."""
    counted = all(o.chunk_tokens is not None for o in done)
    gaps = [gap for o in done for gap in (token_gaps_ms(o) if counted else chunk_gaps_ms(o))]
    return {"itl_ms" if counted else "icl_ms": gaps}


def time_per_output_token_ms(outcome: Outcome) -> float | None:
    """(E2E - TTFT) / (N - n_first); None where no token came after the first chunk."""
    first = outcome.chunk_tokens[0] if outcome.chunk_tokens else 1
    later = (outcome.output_tokens or 0) - first
    return _ms(outcome.last_token_ns, outcome.first_token_ns) / later if later > 0 else None


def chunk_gaps_ms(outcome: Outcome) -> list[float]:
    """Time between one chunk with tokens and the next."""
    return [float(gap) for gap in np.diff(outcome.chunk_ns) / 1e6]


def token_gaps_ms(outcome: Outcome) -> list[float]:
    """Time per token after the first chunk: a gap that brought k tokens is k gaps of a k-th of it."""
    counts = (outcome.chunk_tokens or [])[1:]
    return [gap / k for gap, k in zip(chunk_gaps_ms(outcome), counts, strict=True) for _ in range(k)]


def client_limited(spec: LoadSpec, lag_p99_ms: float, achieved_rate: float, ttft_ms: float | None) -> bool:
    """Whether the client, not the server, shaped the load: late dispatches or another rate than asked."""
    off = abs(achieved_rate / spec.mean_rate - 1) if spec.mean_rate and spec.turns == 1 else 0.0
    return lag_p99_ms > max(MAX_LAG_MS, MAX_LAG_SHARE * (ttft_ms or 0.0)) or off > MAX_RATE_ERROR


def vllm_aliases(result: LoadResult) -> dict[str, float]:
    """The same figures under the key names of vLLM's serving benchmark, for existing dashboards.

    Its `itl` is the gap between chunks; figures that the sample cannot carry are left out.
    """
    aliases = {
        "duration": result.duration_s,
        "completed": float(result.completed),
        "failed": float(result.failed),
        "total_input_tokens": float(result.input_tokens),
        "total_output_tokens": float(result.output_tokens),
        "request_throughput": result.request_throughput,
        "output_throughput": result.output_token_throughput,
        "total_token_throughput": (result.input_tokens + result.output_tokens) / result.duration_s,
        "max_concurrent_requests": float(result.peak_in_flight),
    }
    names = {"ttft_ms": "ttft", "tpot_ms": "tpot", "itl_ms": "itl", "icl_ms": "itl", "e2e_ms": "e2el"}
    for metric, name in names.items():
        if metric in result.metrics:
            aliases |= _alias(name, result.metrics[metric])
    return aliases


def _alias(name: str, found: Distribution) -> dict[str, float]:
    aliases = {f"mean_{name}_ms": found.mean}
    for p in found.percentiles:
        aliases["median_" + name + "_ms" if p.q == 0.5 else f"p{p.q * 100:g}_{name}_ms"] = p.value
    return {key: value for key, value in aliases.items() if value is not None}


def _ms(later: int | None, earlier: int | None) -> float:
    """Difference of two stamps in ms; every completed request has both."""
    assert later is not None and earlier is not None
    return (later - earlier) / 1e6


def _lag_ms(outcomes: Sequence[Outcome], q: float) -> float:
    return float(np.quantile([(o.dispatched_ns - o.scheduled_ns) / 1e6 for o in outcomes], q))


def _first(metrics: dict[str, Distribution]) -> Distribution:
    """The latency until the first sign of an answer."""
    return metrics.get("ttft_ms", metrics["e2e_ms"])


def _scheduled_rate(outcomes: Sequence[Outcome]) -> float:
    """Requests due per second between the first and the last one."""
    times = [o.scheduled_ns for o in outcomes]
    return (len(times) - 1) / max((max(times) - min(times)) / 1e9, 1e-9)


def _dispatch_rate(outcomes: Sequence[Outcome]) -> float:
    """Dispatches per second between the first and the last one."""
    times = [o.dispatched_ns for o in outcomes]
    return (len(times) - 1) / max((max(times) - min(times)) / 1e9, 1e-9)
