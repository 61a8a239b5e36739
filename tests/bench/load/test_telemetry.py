"""What the engine says of itself, and what a prefix cache gives away."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from qdeploy.bench.load.run import measure, save
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.telemetry import telemetry as module
from qdeploy.bench.load.telemetry.gpu import Gpus
from qdeploy.bench.load.telemetry.telemetry import read_metrics
from qdeploy.bench.records import LoadResult
from tests.bench.load.server import Server

PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a} b"} 3.0
vllm:num_requests_running{engine="1",model_name="a} b"} 4.0
vllm:num_requests_running_by_reason{reason="x"} 50.0
vllm:num_requests_waiting NaN
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
vllm:num_preemptions_total{engine="0"} 1.2e1
"""


def spec(**options: object) -> LoadSpec:
    defaults = {"requests": 8, "prompt_tokens": 64, "output_tokens": 4, "warmup": 0, "concurrency": 2}
    return LoadSpec.model_validate(defaults | options)


def test_a_prometheus_page() -> None:
    found = read_metrics(PAGE, 7)
    assert (found.time_ns, found.running, found.kv_usage, found.preemptions) == (7, 7, 0.5, 12)
    assert found.waiting is None
    assert found.prefix_hits is None


def cache_troubles(result: LoadResult) -> list[str]:
    """Without those of a client that a busy machine slows down."""
    return [reason for reason in result.invalid if "prefix cache" in reason]


def test_samples_are_taken_while_the_load_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.02)
    server.behaviour.metrics, server.behaviour.first_token_s = True, 0.1
    load = spec(concurrency=4)
    measured = measure(load, server.url)
    found = measured.result.telemetry
    assert found is not None
    assert found.running is not None
    assert found.running.peak == 4
    assert found.samples > 5
    assert found.prefix_queries == 8 * 64
    assert (found.prefix_hits, cache_troubles(measured.result)) == (0, [])
    save(measured, load, tmp_path / "run")
    rows = pq.read_table(tmp_path / "run" / "telemetry.parquet").to_pylist()
    assert len(rows) == found.samples
    assert [row["time_ns"] for row in rows] == sorted(row["time_ns"] for row in rows)
    assert max(row["running"] for row in rows) == 4


def test_a_server_without_a_page_is_measured_all_the_same(server: Server) -> None:
    assert measure(spec(), server.url).result.telemetry is None


def test_prompts_that_the_server_knows_make_the_run_invalid(server: Server) -> None:
    server.behaviour.metrics = True
    load = spec(salt="1")
    assert cache_troubles(measure(load, server.url).result) == []
    [reason] = cache_troubles(measure(load, server.url).result)
    assert "100.0% of the prompt tokens came from the prefix cache" in reason


def test_a_server_that_can_forget_is_asked_to(server: Server) -> None:
    server.behaviour.metrics = server.behaviour.dev_mode = True
    load = spec(salt="1")
    first, second = (measure(load, server.url) for _ in range(2))
    assert cache_troubles(second.result) == []
    assert first.result.prompts_sha256 == second.result.prompts_sha256


class FakeNvml(SimpleNamespace):
    """The driver of two GPUs that draw 100 and 300 W; a second passes with each sample."""

    NVMLError = RuntimeError
    seconds = 0

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:
        self.seconds += gpu
        return 1_000_000 + (self.seconds - gpu) * (100_000, 300_000)[gpu]


def test_energy_is_the_difference_of_the_drivers_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeNvml(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetPowerUsage=lambda gpu: 5_000,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=1000 + gpu + driver.seconds),
        nvmlDeviceGetName=lambda gpu: f"GPU {gpu}",
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    gpus = Gpus()
    samples = [gpus.sample(i * 10**9) for i in range(3)]
    one, two = gpus.use([sample for sample in samples if sample])
    assert (one.name, one.energy_j, one.mean_power_w) == ("GPU 0", 200, 100)
    assert (two.energy_j, two.mean_power_w, two.peak_memory_bytes) == (600, 300, 1004)
    assert gpus.use([sample for sample in samples[:1] if sample]) == []


def test_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpus = Gpus()
    assert gpus.sample(0) is None
    gpus.close()
