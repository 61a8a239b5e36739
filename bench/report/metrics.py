"""The latency metrics in the order they are read, with their names in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qdeploy.bench.records import Distribution
from qdeploy.bench.report.collect import Variant


@dataclass(frozen=True)
class Metric:
    """A key of `LoadResult.metrics`, what it is called and what it means."""

    key: str
    short: str
    meaning: str

    def of(self, variant: Variant) -> Distribution | None:
        """The variant's distribution, None where it was not measured or no request defined it."""
        load = variant.bench.load if variant.bench else None
        found = load.metrics.get(self.key) if load else None
        return found if found and found.count else None


METRICS = (
    Metric("ttft_sched_ms", "TTFT (scheduled)", "time to first token, from the time the request was due"),
    Metric("ttft_ms", "TTFT (sent)", "time to first token, from the time the request was sent"),
    Metric("tpot_ms", "TPOT", "time per output token after the first, one value a request"),
    Metric("itl_ms", "ITL", "gap between tokens"),
    Metric("icl_ms", "ICL", "gap between streamed chunks, each of which may hold several tokens"),
    Metric("e2e_sched_ms", "E2E (scheduled)", "whole request, from the time it was due"),
    Metric("e2e_ms", "E2E (sent)", "whole request, from the time it was sent"),
)


def measured(variants: Iterable[Variant]) -> list[Metric]:
    """The metrics that at least one variant has."""
    present = list(variants)
    return [metric for metric in METRICS if any(metric.of(variant) for variant in present)]
