"""Traces of all formats, and what is sent when one is replayed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qdeploy.bench.load.run import measure
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.workload.dialect import Dialect
from qdeploy.bench.load.workload.prompts import Vocabulary
from qdeploy.bench.load.workload.target import Target
from qdeploy.bench.load.workload.traces import BLOCK_TOKENS, read_trace
from qdeploy.bench.load.workload.workload import build
from qdeploy.errors import UsageError
from tests.bench.load.server import Server

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,480,10
2023-11-16 18:17:04.2299600,318,8
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,GPT-4,480,10,490,API log
5.25,ChatGPT,318,8,326,API log
"""
MOONCAKE = [
    {"timestamp": 1000, "input_length": 480, "output_length": 10, "hash_ids": [0]},
    {"timestamp": 1250, "input_length": 318, "output_length": 8, "hash_ids": [3]},
]
PLAIN = [
    {"at_s": 9.25, "prompt_tokens": 318, "output_tokens": 8},
    {"at_s": 9.0, "prompt_tokens": 480, "output_tokens": 10},
]
TARGET = Target("http://x/v1", "m", None, Dialect(), Vocabulary(tuple(range(100, 400)), (1,)))


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("azure.csv", AZURE),
        ("azure2024.csv", AZURE.replace("00,", "00+00:00,")),
        ("burst.csv", BURST),
        ("mooncake.jsonl", lines(MOONCAKE)),
        ("plain.jsonl", lines(PLAIN)),
    ],
)
def test_all_formats_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    first, second = read_trace(tmp_path / name, 10)
    assert (first.at_s, first.prompt_tokens, first.output_tokens) == (0, 480, 10)
    assert second.at_s == pytest.approx(0.25, abs=1e-6)
    assert (second.prompt_tokens, second.output_tokens) == (318, 8)


def test_requests_that_got_no_answer_are_not_replayed(tmp_path: Path) -> None:
    rows = BURST + "6,GPT-4,50,0,50,API log\n7,GPT-4,60,5,65,API log\n"
    (tmp_path / "t.csv").write_text(rows)
    assert [r.prompt_tokens for r in read_trace(tmp_path / "t.csv", 3)] == [480, 318, 60]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", AZURE + "yesterday,1,1\n", "line 4 is no Azure CSV row"),
        ("t.jsonl", lines(PLAIN) + "{", "line 3 is no JSON"),
        ("t.jsonl", lines(PLAIN) + "7\n", "line 3 is no JSON object"),
        ("t.jsonl", lines([PLAIN[0] | {"blocks": [-1]}] * 2), "line 1 .*numbered from 0"),
        ("t.csv", "a,b\n1,2\n", "no known format: its first row has a, b. Known are: Azure CSV"),
        ("t.jsonl", lines(PLAIN[:1]), "holds 1 answered requests"),
        ("t.csv", "", "holds 0 answered requests"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        read_trace(tmp_path / name, 10)


def test_a_missing_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_trace(tmp_path / "none.csv", 10)


def test_equal_blocks_become_equal_tokens_and_nothing_else_is_shared(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1200, "output_length": 4, "hash_ids": [5, 6, 7]},
        {"timestamp": 9, "input_length": 1100, "output_length": 5, "hash_ids": [5, 6, 8]},
        {"timestamp": 12, "input_length": 600, "output_length": 6, "hash_ids": [9, 6]},
    ]
    (tmp_path / "t.jsonl").write_text(lines(rows))
    spec = LoadSpec(trace=str(tmp_path / "t.jsonl"), time_scale=2, salt="1")
    found = build(spec, TARGET)
    a, b, c = (json.loads(payload)["prompt"] for payload in found.payloads)
    assert [len(a), len(b), len(c)] == [1200, 1100, 600]
    shared = 1 + 2 * BLOCK_TOKENS
    assert a[:shared] == b[:shared]
    assert a[shared : shared + 16] != b[shared : shared + 16]
    assert a[:17] != c[:17]
    assert found.repeated_tokens == 2 * BLOCK_TOKENS
    assert [json.loads(p)["max_tokens"] for p in found.payloads] == [4, 5, 6]
    assert found.due_ns is not None
    assert found.due_ns.tolist() == [0, 18_000_000, 24_000_000]
    assert build(spec, TARGET).payloads == found.payloads
    other = build(spec.model_copy(update={"salt": "2"}), TARGET)
    assert json.loads(other.payloads[0])["prompt"][:17] != a[:17]


def test_what_does_not_fit_the_context_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"at_s": i, "prompt_tokens": n, "output_tokens": 5} for i, n in enumerate((90, 200, 80))]
    (tmp_path / "t.jsonl").write_text(lines(rows))
    spec = LoadSpec(trace=str(tmp_path / "t.jsonl"))
    narrow = Target("http://x/v1", "m", None, Dialect(), TARGET.vocabulary, max_model_len=100)
    found = build(spec, narrow)
    assert (found.left_out, len(found.payloads)) == (1, 2)
    assert "1 of 3 requests" in capsys.readouterr().err
    with pytest.raises(UsageError, match="of 3 requests 0 fit the served context of 50"):
        build(spec, Target("http://x/v1", "m", None, Dialect(), TARGET.vocabulary, max_model_len=50))


def test_a_replay_keeps_the_times_of_the_trace_and_shares_what_it_shares(
    server: Server, tmp_path: Path
) -> None:
    server.behaviour.metrics = True
    times = (0.0, 0.1, 0.45, 0.5)
    rows = [{"at_s": t, "prompt_tokens": 513, "output_tokens": 3, "blocks": [1]} for t in times]
    (tmp_path / "t.jsonl").write_text(lines(rows))
    found = measure(LoadSpec(trace=str(tmp_path / "t.jsonl"), time_scale=0.5, warmup=0), server.url)
    due = [o.scheduled_ns / 1e9 for o in found.outcomes]
    assert due == pytest.approx([time / 2 for time in times])
    assert all(o.dispatched_ns >= o.scheduled_ns for o in found.outcomes)
    assert found.result.arrival == "trace"
    assert found.result.rate == pytest.approx(3 / 0.25)
    assert found.result.telemetry is not None
    # The BOS token shifts the blocks of the server against those of the trace.
    assert found.result.telemetry.prefix_hits == 3 * 512
    assert not any("prefix cache" in reason for reason in found.result.invalid)
