"""Whether the load client kept up: what it was asked to do beside what it can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qdeploy.bench.load.client import event_loop
from qdeploy.bench.load.client.ceiling import MAX_SHARE, Ceiling
from qdeploy.bench.load.figures.metrics import MAX_LAG_MS, MAX_LAG_SHARE, MAX_RATE_ERROR
from qdeploy.bench.load.figures.outcome import Outcome
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.telemetry.telemetry import EngineSample
from qdeploy.bench.load.workload.workload import Workload
from qdeploy.bench.records import ClientUse, LoadResult


def processes_needed(ceiling: Ceiling, spec: LoadSpec, workload: Workload, warm: Sequence[Outcome]) -> int:
    """Processes that keep each below half of its ceiling; each has a user and a session at least.

    A closed loop is taken to go as fast as its warm-up went, which an endpoint under load does not exceed.
    """
    requests = len(workload.payloads)
    if workload.due_ns is not None:
        rate = requests / max(float(workload.due_ns[-1]) / 1e9, 1e-9)
    else:
        ended = [o.end_ns - o.dispatched_ns for o in warm if o.error is None]
        rate = (spec.concurrency or 1) * len(ended) / max(sum(ended) / 1e9, 1e-9) if ended else 0.0
    wanted = ceiling.processes(rate, rate * workload.output_tokens / requests)
    return min(wanted, len(workload.sessions), spec.concurrency or wanted)


def judge_client(
    result: LoadResult, ceiling: Ceiling, outcomes: Sequence[Outcome], processes: int, busy: float
) -> ClientUse:
    """Record what the client did, and whether the figures describe it more than the endpoint."""
    reads = sum(len(o.chunk_ns) for o in outcomes)
    use = result.client = ClientUse(
        processes=processes,
        event_loop=event_loop.NAME,
        ceiling_requests_per_s=ceiling.requests_per_s,
        ceiling_events_per_s=ceiling.events_per_s,
        share=ceiling.share(result.requests, reads) / result.duration_s / processes,
        busy=busy,
    )
    reasons = list(_reasons(result, use))
    result.client_limited = bool(reasons)
    result.invalid += reasons
    return use


def compare_in_flight(
    use: ClientUse, outcomes: Sequence[Outcome], samples: Sequence[EngineSample], start_ns: int
) -> None:
    """Set what was in flight by the client beside what the engine said: a limit between them shows here."""
    times = np.array([s.time_ns - start_ns for s in samples if s.running is not None], dtype=np.int64)
    if not times.size:
        return
    begun = np.searchsorted(
        np.sort([o.end_ns if o.sent_ns is None else o.sent_ns for o in outcomes]), times, side="right"
    )
    ended = np.searchsorted(np.sort([o.end_ns for o in outcomes]), times, side="right")
    use.in_flight = float((begun - ended).mean())
    said = [s.running + (s.waiting or 0.0) for s in samples if s.running is not None]
    use.engine_in_flight = sum(said) / len(said)


def _reasons(result: LoadResult, client: ClientUse) -> Iterator[str]:
    if result.client_limited:
        yield (
            f"the client fell behind its schedule: it sent {result.achieved_rate:.2f} requests/s of "
            f"{result.rate or 0:.2f} and was {result.schedule_lag_p99_ms:.1f} ms late at p99 (limits: "
            f"{MAX_RATE_ERROR:.0%}; {MAX_LAG_MS:g} ms and {MAX_LAG_SHARE:.0%} of the mean TTFT). "
            "Use a lower rate or a freer machine"
        )
    used = max(client.share, client.busy)
    if used > MAX_SHARE:
        yield (
            f"each process of the client ({client.processes}) was at {used:.0%} of its own ceiling "
            f"(limit: {MAX_SHARE:.0%}). Use a lower load or a machine with more processors"
        )
