"""What the engine says of itself while it is under load: its Prometheus page, once a second."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns

from qdeploy.bench.load.telemetry.gpu import Gpus, GpuSample
from qdeploy.bench.records import Level, Telemetry
from qdeploy.engines.endpoint import Endpoint

INTERVAL_S = 1.0
TIMEOUT_S = 5.0
NAMES = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage"),
    "preemptions": ("vllm:num_preemptions_total",),
    "prefix_queries": ("vllm:prefix_cache_queries_total", "sglang:prompt_tokens_total"),
    "prefix_hits": ("vllm:prefix_cache_hits_total", "sglang:cached_tokens_total"),
}
"""Our name → what engines call it. Prefix queries and hits are counted in tokens."""

MEANINGS = {name: meaning for meaning, names in NAMES.items() for name in names}
LINE = re.compile(rf"^({'|'.join(map(re.escape, MEANINGS))})(?:{{.*}})? (\S+)", re.MULTILINE)


@dataclass(slots=True)
class EngineSample:
    """The engine at one time: requests running and waiting, the share of the KV cache in use, counters."""

    time_ns: int
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    preemptions: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None


def read_metrics(page: str, time_ns: int) -> EngineSample:
    """The figures on a Prometheus page; ranks are added up, of the cache's usage the fullest counts."""
    sample = EngineSample(time_ns)
    for name, text in LINE.findall(page):
        value, meaning = float(text), MEANINGS[name]
        if math.isnan(value):
            continue
        known = getattr(sample, meaning) or 0.0
        setattr(sample, meaning, max(known, value) if meaning == "kv_usage" else known + value)
    return sample


class Watch:
    """Samples the engine, and GPUs if it runs on this machine, while the block runs.

    The first and the last sample are taken at its edges, so that counters cover all of it. An engine without
    a Prometheus page leaves no samples.
    """

    def __init__(self, base_url: str, model: str, api_key: str | None, local: bool) -> None:
        self.samples: list[EngineSample] = []
        self.gpu_samples: list[GpuSample] = []
        self._endpoint = Endpoint(base_url, model, api_key, timeout=TIMEOUT_S)
        self._gpus = Gpus() if local else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Watch:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        self._endpoint.close()
        if self._gpus:
            self._gpus.close()

    def telemetry(self) -> Telemetry | None:
        """All samples in one record, None without any."""
        if not self.samples and not self.gpu_samples:
            return None
        return Telemetry(
            samples=len(self.samples),
            running=self._level(lambda sample: sample.running),
            waiting=self._level(lambda sample: sample.waiting),
            kv_usage=self._level(lambda sample: sample.kv_usage),
            preemptions=self._rise(lambda sample: sample.preemptions),
            prefix_queries=self._rise(lambda sample: sample.prefix_queries),
            prefix_hits=self._rise(lambda sample: sample.prefix_hits),
            gpus=self._gpus.use(self.gpu_samples) if self._gpus else [],
        )

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        page = self._endpoint.metrics_page()
        if page is not None:
            self.samples.append(read_metrics(page, monotonic_ns()))
        gpus = self._gpus.sample(monotonic_ns()) if self._gpus else None
        if gpus is not None:
            self.gpu_samples.append(gpus)

    def _level(self, figure: Callable[[EngineSample], float | None]) -> Level | None:
        """Mean and peak of a gauge."""
        values = [value for sample in self.samples if (value := figure(sample)) is not None]
        return Level(mean=sum(values) / len(values), peak=max(values)) if values else None

    def _rise(self, figure: Callable[[EngineSample], float | None]) -> int | None:
        """By how much a counter rose; None if there is none, or it began anew with the engine."""
        values = [value for sample in self.samples if (value := figure(sample)) is not None]
        return round(values[-1] - values[0]) if len(values) > 1 and values[-1] >= values[0] else None
