"""What a run's figures are worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qdeploy.bench.load.figures.assess import assess, compare_lengths
from qdeploy.bench.load.figures.metrics import summarize
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.workload.dialect import Dialect
from qdeploy.bench.load.workload.target import Target
from qdeploy.bench.load.workload.workload import Workload
from qdeploy.bench.records import GpuUse, LoadResult, Telemetry
from tests.bench.load.test_metrics import OPEN, failed, request

CHAT = Target("http://x/v1", "m", None, Dialect(chat=True), template_tokens=3)


def assessed(telemetry: Telemetry | None = None, spec: LoadSpec = OPEN, **workload: Any) -> LoadResult:
    """Ten requests of 10 prompt and 5 output tokens, in sessions of two."""
    outcomes = [request(i) for i in range(10)]
    result = summarize(spec, outcomes, 1)
    sent = Workload([b""] * 10, [range(i, i + 2) for i in range(0, 10, 2)], None, "00", **workload)
    assess(result, spec, CHAT, sent, outcomes, telemetry)
    return result


@pytest.mark.parametrize(("beyond", "valid"), [(0, True), (1, True), (2, False)])
def test_hits_are_explained_by_templates_repeated_blocks_and_earlier_turns(beyond: int, valid: bool) -> None:
    explained = 3 * 10 + 7 + 5 * (10 + 5)
    found = assessed(
        Telemetry(samples=2, prefix_queries=100, prefix_hits=explained + beyond), repeated_tokens=7
    )
    assert found.telemetry is not None
    assert found.telemetry.prefix_explained == explained
    assert (found.invalid == []) == valid


def test_tokens_per_joule_are_of_all_gpus() -> None:
    gpus = [GpuUse(name="a", mean_power_w=1, energy_j=4, peak_memory_bytes=1) for _ in range(2)]
    found = assessed(Telemetry(samples=0, gpus=gpus)).telemetry
    assert found is not None
    assert found.output_tokens_per_joule == pytest.approx(50 / 8)


def test_cost_is_what_the_time_of_the_run_costs() -> None:
    found = assessed(spec=LoadSpec(rate=1, requests=10, price_per_hour=7.2)).cost
    assert found is not None
    assert found.per_million_output_tokens == pytest.approx(7.2 / 3600 * 9.18 / 50 * 1e6)
    assert found.per_million_tokens == pytest.approx(7.2 / 3600 * 9.18 / 150 * 1e6)


@pytest.mark.parametrize(("ours", "valid"), [(89, False), (91, True), (109, True), (111, False)])
def test_mean_lengths_within_a_tenth_are_comparable(ours: int, valid: bool) -> None:
    outcomes = [request(i, chunks=1, per_chunk=ours) for i in range(3)] + [failed(3, "timeout")]
    result = assessed()
    compare_lengths(result, outcomes, [90, 100, 110])
    assert result.output_length_ratio is not None
    assert result.output_length_ratio.value == pytest.approx(ours / 100)
    assert (result.invalid == []) == valid


def test_the_interval_of_a_ratio_of_lengths_covers_the_truth() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        ours = [request(i, chunks=1, per_chunk=int(n)) for i, n in enumerate(rng.poisson(55, 40))]
        result = assessed()
        compare_lengths(result, ours, rng.poisson(50, 60).tolist())
        ratio = result.output_length_ratio
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        covered += ratio.low < 1.1 < ratio.high
    assert 460 < covered < 492
