"""Service level objectives as a user writes them: limits on percentiles of latencies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

LatencyName = Literal["ttft", "tpot", "e2e", "ntpot"]
LIMIT = re.compile(r"p(\d+(?:\.\d+)?)_(ttft|tpot|e2e|ntpot)=(\d+(?:\.\d+)?)(ms|s)")
EXAMPLE = "p99_ttft=500ms,p99_tpot=50ms"
MLPERF_MS = {
    "llama2-70b": ((2000, 200), (450, 40)),
    "llama3.1-8b": ((2000, 100), (500, 30)),
    "llama3.1-405b": ((6000, 175), (4500, 80)),
    "mixtral-8x7b": ((2000, 200), None),
    "deepseek-r1": ((2000, 80), (1500, 15)),
    "gpt-oss-120b": ((3000, 80), (2000, 15)),
}
"""p99 of TTFT and TPOT that MLPerf Inference sets for its Server and its Interactive scenario
(mlcommons/inference, loadgen/mlperf.conf)."""


@dataclass(frozen=True)
class Limit:
    """At least a share `q` of the requests has its `metric` within `ms`."""

    metric: LatencyName
    q: float
    ms: float

    def __str__(self) -> str:
        return f"p{100 * self.q:g}_{self.metric}={self.ms:.10g}ms"


def presets() -> dict[str, tuple[Limit, ...]]:
    """MLPerf's limits by name: `mlperf-server-llama2-70b`, `mlperf-interactive-llama2-70b` …"""
    return {
        f"mlperf-{scenario}-{model}": (Limit("ttft", 0.99, pair[0]), Limit("tpot", 0.99, pair[1]))
        for model, pairs in MLPERF_MS.items()
        for scenario, pair in zip(("server", "interactive"), pairs, strict=True)
        if pair
    }


def parse_slo(text: str) -> tuple[Limit, ...]:
    """Limits joined by commas, or the name of a preset.

    Raises:
        ValueError: what cannot be read, an example of what can, and the presets.
    """
    if text in presets():
        return presets()[text]
    return tuple(_limit(part.strip()) for part in text.split(","))


def _limit(part: str) -> Limit:
    match = LIMIT.fullmatch(part)
    if match is None or not 0 < float(match[1]) < 100:
        raise ValueError(f"{part!r} is no limit such as {EXAMPLE} and no preset ({', '.join(presets())})")
    return Limit(
        metric=cast(LatencyName, match[2]),
        q=float(match[1]) / 100,
        ms=float(match[3]) * (1000 if match[4] == "s" else 1),
    )
