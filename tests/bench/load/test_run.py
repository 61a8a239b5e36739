"""Whole runs against a server whose delays are known."""

from __future__ import annotations

import socket
import time
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qdeploy.bench.load.figures.assess import compare_lengths
from qdeploy.bench.load.figures.table import output_lengths
from qdeploy.bench.load.run import Measurement, measure, save
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.records import load_record
from qdeploy.errors import EndpointError, UsageError
from tests.bench.load.server import Server


def spec(**options: object) -> LoadSpec:
    defaults = {"requests": 12, "prompt_tokens": 16, "output_tokens": 5, "warmup": 2, "timeout_s": 20.0}
    return LoadSpec.model_validate(defaults | options)


def mean(measurement: Measurement, metric: str) -> float:
    found = measurement.result.metrics[metric].mean
    assert found is not None
    return found


def test_measured_latencies_are_the_programmed_ones(server: Server) -> None:
    server.behaviour.first_token_s, server.behaviour.gap_s = 0.06, 0.03
    found = measure(spec(rate=40), server.url)
    # The server sleeps once more behind the role chunk. Sleeps are never shorter than programmed.
    assert mean(found, "ttft_ms") >= 89
    assert mean(found, "tpot_ms") >= 29
    assert mean(found, "e2e_ms") >= 209
    assert min(o.first_token_ns - o.sent_ns for o in found.outcomes if o.first_token_ns and o.sent_ns) < 250e6
    assert found.result.completed == 12
    assert found.result.output_tokens == 60
    assert found.result.input_tokens == 12 * 16
    assert found.result.metrics["itl_ms"].count == 12 * 4


def test_a_server_that_dies_marks_the_run() -> None:
    dying = Server()
    dying.start()
    dying.behaviour.first_token_s = 0.02
    dying.stop_after(10)
    found = measure(spec(rate=20, requests=20, warmup=0), dying.url).result
    assert 0 < found.completed < 20 and found.completed + found.failed == 20
    assert found.lost
    assert found.invalid == [
        f"the endpoint does not answer any more: {found.failed} of 20 requests failed",
    ]


def test_failures_of_a_server_that_is_there_lose_nothing(server: Server) -> None:
    server.behaviour.fail = {2: "status"}
    found = measure(spec(concurrency=1, warmup=0), server.url).result
    assert found.failed == 1 and not found.lost


def test_open_loop_does_not_wait_for_answers(server: Server) -> None:
    server.behaviour.first_token_s = 0.5
    found = measure(spec(rate=100, arrival="constant", warmup=0), server.url)
    assert found.result.peak_in_flight == server.peak_in_flight == 12
    assert server.arrivals[-1] - server.arrivals[1] < 0.5


def test_closed_loop_never_exceeds_its_concurrency(server: Server) -> None:
    server.behaviour.first_token_s = 0.02
    found = measure(spec(concurrency=3, warmup=0), server.url)
    assert found.result.peak_in_flight == server.peak_in_flight == 3
    assert found.result.arrival == "closed"


def test_a_stall_delays_every_request_that_was_due_meanwhile(server: Server) -> None:
    """Coordinated omission: a client that waits for the server would see one slow request."""
    server.behaviour.stall = (5, 0.4)
    found = measure(spec(rate=50, arrival="constant", requests=40, warmup=0), server.url)
    slow = [o for o in found.outcomes if o.first_token_ns and o.first_token_ns - o.scheduled_ns > 50e6]
    assert len(slow) >= 12
    server.behaviour.stall, server.payloads = (5, 0.4), []
    found = measure(spec(concurrency=1, requests=20, warmup=0), server.url)
    slow = [o for o in found.outcomes if o.first_token_ns and o.first_token_ns - o.scheduled_ns > 300e6]
    assert len(slow) == 1


def test_failures_are_counted_by_kind(server: Server) -> None:
    server.behaviour.fail = {1: "status", 3: "error", 5: "cut", 7: "hang"}
    found = measure(spec(rate=100, warmup=0, timeout_s=1.0), server.url)
    assert found.result.errors == {
        "HTTP 503": 1,
        "error in the stream": 1,
        "connection reset": 1,
        "timeout": 1,
    }
    assert found.result.completed == 8


def test_a_run_without_one_success_is_an_error(server: Server) -> None:
    server.behaviour.fail = dict.fromkeys(range(100), "status")
    with pytest.raises(EndpointError, match=r"None of the 12 requests succeeded: HTTP 503 \(overloaded\)"):
        measure(spec(rate=100, warmup=0), server.url)
    with pytest.raises(EndpointError, match="Every warm-up request failed"):
        measure(spec(rate=100), server.url)


def test_warm_up_is_not_measured_and_no_prompt_comes_twice(server: Server) -> None:
    first = measure(spec(rate=200, warmup=3), server.url)
    second = measure(spec(rate=200, warmup=3), server.url)
    assert len(first.outcomes) == len(second.outcomes) == 12
    asked = [tuple(body["prompt"]) for body in server.payloads if body["max_tokens"] > 1]
    assert len(asked) == len(set(asked)) == 2 * (12 + 3)


def test_without_running_usage_gaps_are_between_chunks(server: Server) -> None:
    server.behaviour.running_usage, server.behaviour.tokens_per_chunk = False, 2
    found = measure(spec(rate=200, output_tokens=6), server.url)
    assert "itl_ms" not in found.result.metrics
    assert found.result.metrics["icl_ms"].count == 12 * 2
    assert found.result.tokens_per_chunk == 2


def test_engine_that_takes_less_is_asked_for_less(server: Server) -> None:
    server.behaviour.refused_fields, server.behaviour.token_ids = ("ignore_eos",), False
    found = measure(spec(rate=200), server.url)
    assert not found.target.dialect.extensions
    assert not found.target.dialect.token_ids
    assert found.target.dialect.running_usage
    assert found.result.input_tokens == 12 * 16


def test_chat_only_endpoint(server: Server) -> None:
    server.behaviour.completions = server.behaviour.tokenize = False
    found = measure(spec(rate=200), server.url)
    assert found.target.dialect.chat
    assert found.target.template_tokens == 5
    assert found.result.completed == 12
    assert abs(found.result.input_tokens / 12 - 16) <= 2


def test_run_folder(server: Server, tmp_path: Path) -> None:
    load = spec(rate=100)
    record = save(measure(load, server.url), load, tmp_path / "run")
    assert load_record(tmp_path / "run") == record
    assert (record.engine.model, record.engine.version) == ("toy", "1.2.3")
    rows = pq.read_table(tmp_path / "run" / "requests.parquet").to_pylist()
    assert [r["index"] for r in rows] == list(range(12))
    for row in rows:
        stages = ("scheduled_ns", "dispatched_ns", "sent_ns", "headers_ns", "first_token_ns", "last_token_ns")
        assert all(row[a] <= row[b] for a, b in pairwise(stages))
        assert (row["chunks"], sum(row["chunk_tokens"])) == (5, 5)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["requests.parquet", "run.json"]


def test_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.behaviour.api_key = "right"
    monkeypatch.setenv("QDEPLOY_API_KEY", "wrong-secret")
    with pytest.raises(EndpointError, match="API key") as caught:
        measure(spec(rate=100), server.url)
    assert "wrong-secret" not in str(caught.value)
    monkeypatch.setenv("QDEPLOY_API_KEY", "right")
    assert measure(spec(rate=100), server.url).result.completed == 12


def test_unusable_endpoints_are_refused_before_the_load(server: Server) -> None:
    with pytest.raises(EndpointError, match="does not serve 'other'"):
        measure(spec(rate=1), server.url, "other")
    server.behaviour.max_model_len = 20
    with pytest.raises(UsageError, match="make 21, but 'toy' is served with a context of 20"):
        measure(spec(rate=1), server.url)
    server.behaviour.max_model_len, server.behaviour.usage = 2048, False
    server.behaviour.running_usage = False
    with pytest.raises(EndpointError, match="no usage in the stream"):
        measure(spec(rate=1), server.url)


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        start = time.monotonic()
        with pytest.raises(EndpointError, match="Cannot reach"):
            measure(spec(rate=1), f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        assert time.monotonic() - start < 15


def test_whole_answers_have_no_first_token(server: Server, tmp_path: Path) -> None:
    server.behaviour.first_token_s = 0.05
    load = spec(rate=100, stream=False, slo="p50_e2e=1s")
    found = measure(load, server.url)
    assert set(found.result.metrics) == {"e2e_ms", "e2e_sched_ms", "ntpot_ms"}
    assert mean(found, "e2e_ms") >= 49
    assert (found.result.output_tokens, found.result.input_tokens) == (60, 12 * 16)
    assert not any(body["stream"] for body in server.payloads)
    assert found.result.slo is not None
    assert found.result.slo.met
    save(found, load, tmp_path / "run")


def test_what_is_not_asked_for_is_pinned(server: Server) -> None:
    measure(spec(rate=200, stop=["\n", "END"], ignore_eos=False), server.url)
    for body in server.payloads:
        assert (body["temperature"], body["top_p"], body["repetition_penalty"]) == (0, 1, 1)
        assert body["stop"] == ["\n", "END"]
        assert not body["ignore_eos"]


def test_figures_of_cost_and_goodput(server: Server) -> None:
    found = measure(spec(rate=100, slo="p50_ttft=5s", price_per_hour=3.6), server.url).result
    assert found.cost is not None
    assert found.cost.per_million_output_tokens == pytest.approx(1e3 * found.duration_s / 60)
    assert found.slo is not None
    assert found.vllm_aliases["request_goodput"] == pytest.approx(12 / found.duration_s)


@pytest.mark.parametrize(("part", "valid"), [(1.0, True), (0.8, False)])
def test_answers_of_another_length_than_the_baselines_make_the_run_invalid(
    server: Server, tmp_path: Path, part: float, valid: bool
) -> None:
    load = spec(concurrency=2, output_tokens=10, ignore_eos=False)
    save(measure(load, server.url), load, tmp_path / "baseline")
    server.behaviour.length = part
    found = measure(load, server.url)
    compare_lengths(found.result, found.outcomes, output_lengths(tmp_path / "baseline"))
    assert found.result.output_length_ratio is not None
    assert found.result.output_length_ratio.value == pytest.approx(part)
    assert (found.result.invalid == []) == valid
