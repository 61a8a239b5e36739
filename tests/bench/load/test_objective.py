from __future__ import annotations

import pytest

from qdeploy.bench.load.figures.objective import judge
from qdeploy.bench.load.figures.slo import Limit, parse_slo, presets
from qdeploy.bench.load.figures.steady import steady_window
from tests.bench.load.test_metrics import MS, failed, request


def test_limits_as_written() -> None:
    found = parse_slo("p99_ttft=500ms, p90_e2e=1.5s")
    assert found == (Limit("ttft", 0.99, 500), Limit("e2e", 0.9, 1500))
    assert ",".join(map(str, found)) == "p99_ttft=500ms,p90_e2e=1500ms"


@pytest.mark.parametrize("text", ["p99_ttft=500", "ttft=500ms", "p99_latency=1s", "p0_ttft=1s", "", "mlperf"])
def test_other_limits_are_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"p99_ttft=500ms.*mlperf-server-llama2-70b"):
        parse_slo(text)


def test_presets_are_mlperfs() -> None:
    assert parse_slo("mlperf-server-llama2-70b") == (Limit("ttft", 0.99, 2000), Limit("tpot", 0.99, 200))
    assert parse_slo("mlperf-interactive-deepseek-r1") == (Limit("ttft", 0.99, 1500), Limit("tpot", 0.99, 15))
    assert "mlperf-interactive-mixtral-8x7b" not in presets()


def test_a_request_counts_if_it_keeps_all_limits_from_when_it_was_due() -> None:
    outcomes = [request(i) for i in range(96)]
    outcomes += [request(96, lag=450), request(97, ttft=600), request(98, gap=80), failed(99, "timeout")]
    found = judge(parse_slo("p95_ttft=500ms,p95_tpot=50ms"), outcomes, duration_s=50)
    assert [limit.over for limit in found.limits] == [3, 2]
    assert found.met
    assert found.good_share.value == 0.96
    assert found.goodput.value == pytest.approx(96 / 50)
    assert found.goodput.low is not None
    assert found.goodput.high is not None
    assert found.goodput.low < 96 / 50 < found.goodput.high
    assert not judge(parse_slo("p98_ttft=500ms"), outcomes, duration_s=50).met


def test_a_bad_stretch_of_time_widens_the_interval() -> None:
    scattered = [request(i, ttft=600 if i % 5 == 0 else 100) for i in range(200)]
    together = [request(i, ttft=600 if 80 <= i < 120 else 100) for i in range(200)]
    limits = parse_slo("p50_ttft=500ms")
    a, b = (judge(limits, outcomes, 200).good_share for outcomes in (scattered, together))
    assert a.value == b.value == 0.8
    assert a.low is not None
    assert b.low is not None
    assert b.low < a.low - 0.05


def test_what_a_short_run_cannot_show_is_undecided() -> None:
    limits = parse_slo("p99_ttft=500ms")
    short = judge(limits, [request(i) for i in range(100)], 100)
    assert (short.met, short.verdict, short.limits[0].bound_ms) == (True, "inconclusive", None)
    long = judge(limits, [request(i) for i in range(500)], 500)
    assert (long.met, long.verdict, long.limits[0].bound_ms) == (True, "pass", 100)
    slow = judge(limits, [request(i, ttft=900) for i in range(10)], 10)
    assert (slow.met, slow.verdict) == (False, "fail")


def test_steady_window_of_an_open_loop() -> None:
    """One request a second, tokens at 100, 120 … 180 ms: from the first end to the last arrival."""
    found = steady_window([request(i) for i in range(10)], None)
    assert found is not None
    assert (found.start_s, found.end_s) == (0.18, 9)
    assert found.requests == 8
    assert found.request_throughput == pytest.approx(8 / 8.82)
    assert found.output_token_throughput == pytest.approx((1 + 8 * 5) / 8.82)


def test_steady_window_of_a_closed_loop_leaves_out_ramp_and_drain() -> None:
    outcomes = [request(i) for i in range(12)]
    for i, outcome in enumerate(outcomes):
        user, turn = i % 3, i // 3
        outcome.dispatched_ns = (100 * user + 1000 * turn) * MS
        outcome.end_ns = outcome.dispatched_ns + 1000 * MS
        outcome.chunk_ns = [outcome.end_ns]
        outcome.chunk_tokens = None
    found = steady_window(outcomes, 3)
    assert found is not None
    assert (found.start_s, found.end_s) == (0.2, 4.0)
    assert found.requests == 10
    assert steady_window(outcomes, 4) is None


def test_tokens_of_a_whole_answer_are_spread_over_its_time() -> None:
    outcomes = [request(i) for i in range(3)]
    for outcome in outcomes:
        outcome.chunk_ns, outcome.end_ns = [], outcome.dispatched_ns + 1000 * MS
    found = steady_window(outcomes, None)
    assert found is not None
    assert (found.start_s, found.end_s) == (1, 2)
    assert found.output_token_throughput == pytest.approx(5)
