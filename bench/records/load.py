"""The figures of a load (definitions: docs/metrics.md, docs/load.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qdeploy.bench.records.base import Estimate, Record, Verdict


class Percentile(Record):
    """One percentile, `q` a fraction; `value` is None where there are fewer than `needed` samples.

    `low` and `high` are a 95 % interval, `bound` what it is at most with 99 % confidence (as in MLPerf).
    """

    q: float
    value: float | None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    needed: int


class Distribution(Record):
    """A latency in milliseconds over the completed requests."""

    count: int
    mean: float | None
    percentiles: list[Percentile]


class SteadyWindow(Record):
    """Throughput while the load was fully on, without ramp-up and drain; seconds from the run's start."""

    start_s: float
    end_s: float
    requests: int
    request_throughput: float
    output_token_throughput: float


class LimitResult(Record):
    """How the attempted requests kept one limit; `bound_ms` is what its percentile is at most (99 %)."""

    limit: str
    requests: int
    over: int
    bound_ms: float | None
    verdict: Verdict


class SloResult(Record):
    """Whether a service level objective was met, and the goodput: requests within all limits.

    `met` compares the shares as observed; `verdict` says what they show with 99 % confidence.
    """

    limits: list[LimitResult]
    met: bool
    verdict: Verdict
    good_share: Estimate
    goodput: Estimate


class Level(Record):
    """A quantity that was sampled during the run."""

    mean: float
    peak: float


class GpuUse(Record):
    """One GPU of the machine during the run, by NVML. Energy covers all that ran on it."""

    name: str
    mean_power_w: float
    energy_j: float
    peak_memory_bytes: int


class Telemetry(Record):
    """What the engine said of itself at /metrics, and the GPUs; None where it does not say.

    `prefix_explained` tokens of prompts could come from the prefix cache by what was sent.
    """

    samples: int
    running: Level | None = None
    waiting: Level | None = None
    kv_usage: Level | None = None
    preemptions: int | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None
    prefix_explained: int = 0
    gpus: list[GpuUse] = Field(default_factory=list)
    output_tokens_per_joule: float | None = None


class ClientUse(Record):
    """What the load client could do and did: processor time, per process, by its self-test on this machine.

    `ceiling_requests_per_s` are requests of one event, `ceiling_events_per_s` events of open streams, by one
    process that does nothing else; `share` of that is what this load took of each of the `processes`, and
    `busy` the share of a processor that the busiest really used. `in_flight` is the mean number of requests
    out when the engine was asked for its own, `engine_in_flight` what it said: running and waiting together.
    """

    processes: int
    event_loop: str
    ceiling_requests_per_s: float
    ceiling_events_per_s: float
    share: float
    busy: float
    in_flight: float | None = None
    engine_in_flight: float | None = None


class Cost(Record):
    """What tokens cost at the run's throughput, in the currency of the price."""

    price_per_hour: float
    per_million_output_tokens: float
    per_million_tokens: float


class LoadResult(Record):
    """One load run (definitions: docs/metrics.md).

    `interrupted` by Ctrl-C, the figures are of the requests that had ended; `lost`: requests failed, and the
    endpoint did not answer any more when the run was over.
    """

    arrival: Literal["poisson", "gamma", "constant", "trace", "closed"]
    rate: float | None = None
    concurrency: int | None = None
    prompt_tokens_asked: int
    output_tokens_asked: int
    seed: int
    requests: int
    completed: int
    failed: int
    errors: dict[str, int] = Field(default_factory=dict)
    duration_s: float
    achieved_rate: float
    input_tokens: int
    output_tokens: int
    request_throughput: float
    output_token_throughput: float
    peak_in_flight: int
    schedule_lag_p50_ms: float | None = None
    schedule_lag_p99_ms: float | None = None
    client: ClientUse | None = None
    client_limited: bool = False
    tokens_per_chunk: float | None = None
    tpot_undefined: int = 0
    source: str = ""
    prompts_sha256: str = ""
    left_out: int = 0
    interrupted: bool = False
    lost: bool = False
    invalid: list[str] = Field(default_factory=list)
    output_length_ratio: Estimate | None = None
    steady: SteadyWindow | None = None
    slo: SloResult | None = None
    telemetry: Telemetry | None = None
    cost: Cost | None = None
    metrics: dict[str, Distribution]
    vllm_aliases: dict[str, float] = Field(default_factory=dict)

    @property
    def doubt(self) -> str | None:
        """Why the figures say little of the server; None where they are sound."""
        if self.interrupted:
            return "not whole: it was interrupted"
        if self.invalid:
            return f"invalid: {'; '.join(self.invalid)}"
        return "limited by the load client" if self.client_limited else None


class SeriesRecord(Record):
    """Runs of one load at several rates in requests/s, ascending, and what they say together.

    `capacity` is fitted (docs/load.md); `saturating_rate` is the lowest rate beyond it that saturated the
    endpoint, `kept_rate` the highest below that, `best_rate` the highest within the objective.
    """

    capacity: float
    kept_rate: float | None
    saturating_rate: float | None
    best_rate: float | None
    runs: list[LoadResult]
